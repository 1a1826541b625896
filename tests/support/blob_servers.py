"""Every transport with a real server behind it, for suites that run over all of them."""

from __future__ import annotations

import os
import shutil
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

from premoe_dataplane.plan import Source
from premoe_dataplane.redis_cache import RedisCache
from premoe_dataplane.transports.base import Transport
from premoe_dataplane.transports.file import FileTransport
from premoe_dataplane.transports.http import HttpTransport
from premoe_dataplane.transports.objects import ObjectTransport
from premoe_dataplane.transports.redis import RedisTransport
from premoe_dataplane.transports.stream import StreamTransport
from premoe_servicekit.clients import blocking_channel
from premoe_servicekit.tls import tls_of

from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.formats.pieces import Hole
from premoe_runtime.storage import open_store
from support.certificates import Authority, tls_folder
from support.frame_store import FrameStore
from support.range_server import range_server
from support.redis_servers import RedisSet, several, with_tls
from support.servers import find_program, redis_server, running, s3_server, stop

KINDS = [
    *("file", "http", "https", *(["nginx"] if shutil.which("nginx") else [])),
    *("redis", "redis several", "redis tls", "object", "grpc", "earlier grpc"),
]


@dataclass
class Served:
    """A transport, and how a test puts blobs where it reads and takes its server away."""

    transport: Transport
    source: Callable[[str], Source]
    put: Callable[[str, bytes], object]
    take_down: Callable[[], object]
    may_lack: bool = True
    """Whether one missing blob leaves the others readable."""
    _experts: dict[str, ExpertId] = field(default_factory=dict)

    def expert(self, digest: str) -> ExpertId:
        return self._experts.setdefault(digest, ExpertId(0, len(self._experts)))


@contextmanager
def serve(kind: str, folder: Path) -> Iterator[Served]:
    """The transport ``kind`` over an empty place."""
    with ExitStack() as stack:
        made = _MADE[kind](folder, stack)
        try:
            yield made
        finally:
            made.transport.close()


def _file(folder: Path, stack: ExitStack) -> Served:
    blobs = folder / "blobs"
    blobs.mkdir()
    return Served(
        FileTransport(),
        lambda digest: Source("file", "node", str(blobs / digest)),
        lambda digest, data: (blobs / digest).write_bytes(data),
        lambda: shutil.rmtree(blobs),
    )


def _http(folder: Path, stack: ExitStack) -> Served:
    down = stack.enter_context(ExitStack())
    server = down.enter_context(range_server())
    return Served(
        HttpTransport(idle_s=5),
        lambda digest: Source("http", "node", server.url(digest)),
        server.blobs.__setitem__,
        down.close,
    )


def _https(folder: Path, stack: ExitStack) -> Served:
    """Mutual, as between our processes."""
    authority = Authority()
    ours = tls_folder(folder / "ours", authority, "worker")
    theirs = tls_folder(folder / "theirs", authority, "store")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(theirs.folder / "tls.crt", theirs.folder / "tls.key")
    context.load_verify_locations(theirs.folder / "ca.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    down = stack.enter_context(ExitStack())
    server = down.enter_context(range_server(context))
    return Served(
        HttpTransport(tls_of(ours.settings()), idle_s=5),
        lambda digest: Source("http", "node", server.url(digest)),
        server.blobs.__setitem__,
        down.close,
    )


def _nginx(folder: Path, stack: ExitStack) -> Served:
    """The reference of HTTP servers, over a folder."""
    blobs = folder / "blobs"
    blobs.mkdir()
    configuration = folder / "nginx.conf"

    def command(port: int) -> list[str]:
        configuration.write_text(
            f"{'user root;' if os.geteuid() == 0 else ''} daemon off; pid {folder}/nginx.pid;\n"
            "error_log stderr; worker_processes 1;\n"
            "events { worker_connections 64; }\n"
            f"http {{ access_log off; sendfile on; client_body_temp_path {folder}; proxy_temp_path {folder};\n"
            f"fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};\n"
            f"keepalive_requests 3; server {{ listen 127.0.0.1:{port}; root {folder}; }} }}\n"
        )
        return [find_program("nginx"), "-p", str(folder), "-c", str(configuration)]

    port, process = stack.enter_context(running(command, folder / "nginx.log"))
    return Served(
        HttpTransport(idle_s=5),
        lambda digest: Source("http", "node", f"http://127.0.0.1:{port}/blobs/{digest}"),
        lambda digest, data: (blobs / digest).write_bytes(data),
        lambda: stop(process),
    )


def _redis(folder: Path, stack: ExitStack) -> Served:
    server = stack.enter_context(redis_server(folder))
    return _in_redis(RedisSet(server.url, [server.url], [server.process]))


def _redis_several(folder: Path, stack: ExitStack) -> Served:
    return _in_redis(stack.enter_context(several(folder)))


def _redis_tls(folder: Path, stack: ExitStack) -> Served:
    return _in_redis(stack.enter_context(with_tls(folder)))


def _in_redis(servers: RedisSet) -> Served:
    def put(digest: str, data: bytes) -> None:
        writer = RedisCache(servers.url, timeout_s=5)
        writer.write(digest, memoryview(data), [Hole(0, len(data))])
        writer.close()

    def take_down() -> None:
        for process in servers.processes:
            stop(process)

    return Served(
        RedisTransport(servers.url, idle_s=5),
        lambda digest: Source("redis", "redis", f"premoe:blob:{digest}"),
        put,
        take_down,
    )


def _object(folder: Path, stack: ExitStack) -> Served:
    server = stack.enter_context(s3_server(folder))
    with patch.dict(os.environ, server.env):
        store = open_store(server.url)
    return Served(
        ObjectTransport(store),
        lambda digest: Source("object", "object", f"blobs/{digest}"),
        lambda digest, data: store.put(f"blobs/{digest}", data),
        lambda: stop(server.process),
    )


def _grpc(folder: Path, stack: ExitStack) -> Served:
    return _stream(stack, offsets=True)


def _earlier_grpc(folder: Path, stack: ExitStack) -> Served:
    """A store of before ``FetchRequest.offset``."""
    return _stream(stack, offsets=False)


def _stream(stack: ExitStack, *, offsets: bool) -> Served:
    store = FrameStore(offsets=offsets)
    down = stack.enter_context(ExitStack())
    address = down.enter_context(store.served())
    channel = stack.enter_context(blocking_channel(address))

    def source(digest: str) -> Source:
        store.names.setdefault(made.expert(digest), digest)
        return Source("grpc", "node", "lease")

    made = Served(
        StreamTransport(channel, address, lambda: "model", idle_s=5),
        source,
        store.blobs.__setitem__,
        down.close,
        may_lack=False,
    )
    return made


_MADE: dict[str, Callable[[Path, ExitStack], Served]] = {
    "file": _file,
    "http": _http,
    "https": _https,
    "nginx": _nginx,
    "redis": _redis,
    "redis several": _redis_several,
    "redis tls": _redis_tls,
    "object": _object,
    "grpc": _grpc,
    "earlier grpc": _earlier_grpc,
}
