"""A model hub on loopback: the two API answers and the redirecting file addresses that ``hf://`` sources use."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, quote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(slots=True)
class Hub:
    """Serves ``folder`` as ``org/name`` at commit ``COMMIT`` under revision ``main``."""

    folder: Path
    endpoint: str = ""
    requests: list[tuple[str, str]] = field(default_factory=list)
    """(path, Range header) of every request, in order."""
    tokens: set[str] = field(default_factory=set)
    """Authorization headers seen."""
    refusals: list[tuple[str, int, dict[str, str]]] = field(default_factory=list)
    """What to answer once each: (part of the path, status, headers)."""
    revisions: tuple[str, ...] = ("main", COMMIT)
    page: int = 1000
    """Files in one answer of the tree."""


@contextmanager
def hub(folder: Path) -> Iterator[Hub]:
    """Serve ``folder`` until the block ends."""
    state = Hub(folder)

    class Handler(_Handler):
        hub = state

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body go in two sends, and the second would wait 40 ms
    hub: Hub

    def do_GET(self) -> None:
        self.hub.requests.append((self.path, self.headers.get("Range", "")))
        self.hub.tokens.add(self.headers.get("Authorization", ""))
        path, _, query = self.path.partition("?")
        for refusal in self.hub.refusals:
            if refusal[0] in path:
                self.hub.refusals.remove(refusal)
                return self._answer(refusal[1], b"refused", refusal[2])
        if path in [f"/api/models/org/name/revision/{quote(each, safe='')}" for each in self.hub.revisions]:
            self._answer(200, json.dumps({"id": "org/name", "sha": COMMIT}).encode())
        elif path == f"/api/models/org/name/tree/{COMMIT}":
            start = int(dict(parse_qsl(query)).get("cursor", 0))
            tree, end = self._tree(), start + self.hub.page
            more = {"Link": f'<{path}?recursive=true&cursor={end}>; rel="next"'} if end < len(tree) else None
            self._answer(200, json.dumps(tree[start:end]).encode(), more)
        elif self.path.startswith(f"/org/name/resolve/{COMMIT}/"):
            self._answer(302, b"", {"Location": "/cdn/" + self.path.split(COMMIT + "/", 1)[1]})
        elif self.path.startswith("/cdn/") and (self.hub.folder / self.path[5:]).is_file():
            self._file(self.hub.folder / self.path[5:])
        else:
            self._answer(404, b"not here")

    def _tree(self) -> list[dict[str, object]]:
        files = [
            {"type": "file", "path": name, "size": path.stat().st_size, "oid": f"oid-{name}"}
            for path in sorted(self.hub.folder.rglob("*"))
            if path.is_file() and (name := path.relative_to(self.hub.folder).as_posix())
        ]
        return [{"type": "directory", "path": "original", "oid": "x"}, *files]

    def _file(self, path: Path) -> None:
        data = path.read_bytes()
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if span is None:
            self._answer(200, data)
            return
        first, last = int(span[1]), min(int(span[2]), len(data) - 1)
        self._answer(206, data[first : last + 1], {"Content-Range": f"bytes {first}-{last}/{len(data)}"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...
