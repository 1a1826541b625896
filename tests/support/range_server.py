"""An HTTP server of blobs by ranges whose answers a test may spoil, one script a request."""

from __future__ import annotations

import re
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[["Handler", bytes, int, int], None]
"""Of a request for bytes ``first`` to ``last`` of a blob."""


@dataclass
class RangeServer:
    """``blobs`` by name. ``scripts`` answer the next requests, then the rest is honest."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    scripts: deque[Answer] = field(default_factory=deque)
    served: list[tuple[str, int, int]] = field(default_factory=list)
    connections: int = 0
    port: int = 0
    scheme: str = "http"
    open: set[socket.socket] = field(default_factory=set)
    released: threading.Event = field(default_factory=threading.Event)
    """Set at the end, for answers that wait."""

    def url(self, name: str) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/v1/blobs/{name}?sig=x"


class Handler(BaseHTTPRequestHandler):
    """HTTP/1.1 with keep-alive."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    state: RangeServer

    def setup(self) -> None:
        super().setup()
        self.state.connections += 1
        self.state.open.add(self.connection)

    def finish(self) -> None:
        self.state.open.discard(self.connection)
        super().finish()

    def do_GET(self) -> None:
        name = self.path.split("?")[0].rsplit("/", 1)[-1]
        blob = self.state.blobs.get(name)
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        assert asked is not None
        first, last = int(asked[1]), int(asked[2])
        self.state.served.append((name, first, last))
        if blob is None:
            self.send_error(404)
            return
        script = self.state.scripts.popleft() if self.state.scripts else honest
        script(self, blob, first, last)

    def head(self, status: int, first: int, last: int, length: int, total: int) -> None:
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{total}")
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        return


def honest(handler: Handler, blob: bytes, first: int, last: int) -> None:
    if last >= len(blob):
        handler.send_error(416)
        return
    handler.head(206, first, last, last + 1 - first, len(blob))
    handler.wfile.write(memoryview(blob)[first : last + 1])


def flipped(handler: Handler, blob: bytes, first: int, last: int) -> None:
    """One bit of the first byte."""
    handler.head(206, first, last, last + 1 - first, len(blob))
    handler.wfile.write(bytes([blob[first] ^ 1]) + blob[first + 1 : last + 1])


def shifted(handler: Handler, blob: bytes, first: int, last: int) -> None:
    """A 206 about other bytes, of the right number."""
    handler.head(206, first + 1, last + 1, last + 1 - first, len(blob))
    handler.wfile.write(blob[first : last + 1])


def truncated(handler: Handler, blob: bytes, first: int, last: int) -> None:
    """Half the body, then the end."""
    handler.head(206, first, last, last + 1 - first, len(blob))
    handler.wfile.write(blob[first : (first + last) // 2])
    handler.close_connection = True


def expired(handler: Handler, blob: bytes, first: int, last: int) -> None:
    handler.send_error(403)


def failing(handler: Handler, blob: bytes, first: int, last: int) -> None:
    handler.send_error(503)


def telling(handler: Handler, blob: bytes, first: int, last: int) -> None:
    """A fault of the blob, as the byte server tells it."""
    line = b"BLOB_LOST: layer 0 expert 0 is missing in the object store; run premoe pack verify\n"
    handler.head(500, 0, 0, len(line), len(line))
    handler.wfile.write(line)


def whole(handler: Handler, blob: bytes, first: int, last: int) -> None:
    """What a server does that knows no ranges."""
    handler.head(200, 0, 0, len(blob), len(blob))
    handler.wfile.write(blob)


def hanging_up(handler: Handler, blob: bytes, first: int, last: int) -> None:
    """Right, and then the end without a word, as a server that restarts."""
    honest(handler, blob, first, last)
    handler.close_connection = True


def silent(handler: Handler, blob: bytes, first: int, last: int) -> None:
    """Half a body, then nothing."""
    handler.head(206, first, last, last + 1 - first, len(blob))
    handler.wfile.write(blob[first : (first + last) // 2])
    handler.state.released.wait(60)
    handler.close_connection = True


def trickling(handler: Handler, blob: bytes, first: int, last: int) -> None:
    """A byte now and then, never so slowly that it would be silence."""
    handler.head(206, first, last, last + 1 - first, len(blob))
    for at in range(first, last + 1):
        handler.wfile.write(blob[at : at + 1])
        if handler.state.released.wait(0.02):
            return


@contextmanager
def range_server(context: ssl.SSLContext | None = None) -> Iterator[RangeServer]:
    """On a free loopback port; stopped at the end, connections too."""
    state = RangeServer(scheme="https" if context else "http")

    class Bound(Handler):
        pass

    Bound.state = state

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, request: Any, client_address: Any) -> None:
            return

    server = Server(("127.0.0.1", 0), Bound)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    state.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
        for connection in list(state.open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
