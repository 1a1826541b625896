"""The port that blobs are read from: plain HTTP/1.1, or HTTPS with the mesh's mutual TLS."""

from __future__ import annotations

import asyncio
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web
from premoe_servicekit.server import check_port_is_free, join_address, resolved
from premoe_servicekit.tls import Tls

from premoe_expert_store.http.handler import RETRY_AFTER_S, BlobHandler
from premoe_runtime.formats.errors import InvalidInput

BACKLOG = 512
KEEP_ALIVE_S = 75.0
"""For which a connection without a request stays open, also a new one."""
HANDSHAKE_S = 20.0
SHORTEST_GRACE_S = 0.02
"""To aiohttp none at all means to wait for ever."""
_ALLOWED = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
_FULL = (
    "HTTP/1.1 503 Service Unavailable\r\nRetry-After: {}\r\nConnection: close\r\nContent-Type: text/plain\r\n"
    "Content-Length: {}\r\n\r\n{}"
)


@dataclass(frozen=True, slots=True)
class Listening:
    """Where and how. ``congestion_control``: of TCP, for this port alone; empty: the system's."""

    host: str
    port: int
    connections: int
    congestion_control: str = ""


class ByteServer:
    """Create, start and stop it on one event loop. Raises Unavailable (PORT_IN_USE) or InvalidInput at the start."""

    def __init__(self, handler: BlobHandler, listening: Listening, *, tls: Tls | None) -> None:
        self._listening = listening
        self._context = None if tls is None else server_context(tls)
        self._http = web.Server(
            handler,
            access_log=None,
            keepalive_timeout=KEEP_ALIVE_S,
            # Who waits for an arrival and leaves must not hold it.
            handler_cancellation=True,
        )
        self._server: asyncio.Server | None = None
        self._ending: asyncio.Task[None] | None = None
        self.address = ""

    @property
    def connections(self) -> int:
        """Open ones."""
        return len(self._http.connections)

    async def start(self) -> str:
        """Accept connections. Returns the address bound."""
        listener = _listener(self._listening)
        self._server = await asyncio.get_running_loop().create_server(
            self._accepted,
            sock=listener,
            ssl=self._context,
            ssl_handshake_timeout=HANDSHAKE_S if self._context else None,
        )
        self.address = join_address(self._listening.host, listener.getsockname()[1])
        return self.address

    async def stop(self, grace_s: float) -> None:
        """No new connections; those under way get ``grace_s`` to end. A second call cuts a first one short."""
        if self._server is None:
            return
        self._server.close()
        self._http.pre_shutdown()
        if self._ending is not None:
            self._ending.cancel()  # aiohttp would have it wait for ever beside another one
        self._ending = asyncio.create_task(self._http.shutdown(max(grace_s, SHORTEST_GRACE_S)))
        await asyncio.wait([self._ending])

    def _accepted(self) -> asyncio.Protocol:
        return _Full() if self.connections >= self._listening.connections else self._http()


class _Full(asyncio.Protocol):
    """A connection beyond the bound: told so, and closed."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        line = "CONNECTIONS_FULL: this store has as many connections as it may have\n"
        transport.write(_FULL.format(RETRY_AFTER_S, len(line), line).encode())
        transport.close()


def server_context(tls: Tls) -> ssl.SSLContext:
    """Mutual TLS that follows the files: every connection gets what is in force when it comes."""
    served = (tls.material(), _context(tls))
    first = _context(tls)

    def newest(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        nonlocal served
        material = tls.material()
        if material is not served[0]:
            served = (material, _context(tls))
        connection.context = served[1]

    first.sni_callback = newest
    return first


def _context(tls: Tls) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=tls.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(tls.cert, tls.key)
    return context


def _listener(listening: Listening) -> socket.socket:
    check_port_is_free(listening.host, listening.port)
    kind, address = resolved(listening.host, listening.port)
    listener = socket.socket(kind, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if listening.congestion_control:
            _control(listener, listening.congestion_control)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _control(listener: socket.socket, name: str) -> None:
    try:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
    except OSError as error:
        try:
            allowed = _ALLOWED.read_text().split()
        except OSError:
            allowed = []
        raise InvalidInput(
            f"congestion control {name!r} cannot be had here ({error.strerror}); "
            f"this system lets programs choose of: {', '.join(allowed) or 'none'}",
            reason="CONGESTION_CONTROL",
        ) from None
