"""Connections to HTTP servers that are kept for the next read."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import urlsplit

from premoe_servicekit.tls import Material, Tls, load_pair

from premoe_dataplane.sockets import Incoming
from premoe_runtime.formats.errors import CorruptData, Unavailable

CONNECT_S = 2.0
KEPT = 4
"""Connections kept per server."""
KEPT_S = 30.0
"""Below what servers usually keep them."""


class Address(NamedTuple):
    """A server."""

    secure: bool
    host: str
    port: int

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{'https' if self.secure else 'http'}://{self.host_header}"


@dataclass(slots=True, eq=False)
class HttpConnection:
    """A connection. ``kept``: it has answered before; ``closing``: the server answers nothing more on it."""

    address: Address
    sock: socket.socket
    incoming: Incoming
    kept: bool = False
    closing: bool = False
    since: float = 0.0

    def close(self) -> None:
        self.sock.close()


class HttpPool:
    """Makes connections and keeps a few. Safe from several threads; a connection belongs to who took it."""

    def __init__(self, tls: Tls | None, idle_s: float) -> None:
        self._tls, self._idle_s = tls, idle_s
        self._lock = threading.Lock()
        self._kept: dict[Address, list[HttpConnection]] = {}
        self._context: tuple[Material, ssl.SSLContext] | None = None
        self._closed = False

    def take(self, address: Address, *, fresh: bool) -> HttpConnection:
        """A kept connection, or a new one; ``fresh``: no kept one is any good. Raises OSError, Unavailable."""
        with self._lock:
            kept = self._kept.pop(address, [])
            young = [one for one in kept if not fresh and time.monotonic() - one.since < KEPT_S]
            taken = young.pop() if young else None
            if young:
                self._kept[address] = young
        for one in kept:
            if one is not taken and one not in young:
                one.close()
        return taken or self._connect(address)

    def give(self, connection: HttpConnection) -> None:
        """Back, with nothing under way on it."""
        connection.kept, connection.since = True, time.monotonic()
        with self._lock:
            kept = self._kept.setdefault(connection.address, [])
            if not self._closed and not connection.closing and len(kept) < KEPT:
                kept.append(connection)
                return
        connection.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            kept, self._kept = self._kept, {}
        for connections in kept.values():
            for connection in connections:
                connection.close()

    def _connect(self, address: Address) -> HttpConnection:
        # Never through a proxy that the environment names: stores are in this cluster.
        sock = socket.create_connection((address.host, address.port), timeout=min(CONNECT_S, self._idle_s))
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if address.secure:
                sock = self._secured(sock, address)
            return HttpConnection(address, sock, Incoming(sock, self._idle_s))
        except BaseException:
            sock.close()
            raise

    def _secured(self, sock: socket.socket, address: Address) -> ssl.SSLSocket:
        tls = self._tls
        if tls is None:
            raise Unavailable(f"{address} wants TLS, and this process has no TLS files", reason="SOURCE_UNAVAILABLE")
        name = tls.server_name or address.host
        return self._tls_context(tls).wrap_socket(sock, server_hostname=name)

    def _tls_context(self, tls: Tls) -> ssl.SSLContext:
        """As the files are now."""
        material = tls.material()
        with self._lock:
            if self._context is None or self._context[0] is not material:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.load_verify_locations(cadata=material.ca.decode("ascii", "replace"))
                load_pair(context, tls.cert, tls.key)
                self._context = material, context
            return self._context[1]


@lru_cache(maxsize=4096)
def address_of(url: str) -> tuple[Address, str]:
    """The server of a URL, and what to ask it for. Raises CorruptData."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        port, parts = None, urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname or not url.isascii() or not url.isprintable():
        raise CorruptData(f"no URL that can be read: {url[:100]!r}", reason="PLAN_INVALID")
    secure = parts.scheme == "https"
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if " " in target:
        raise CorruptData(f"no URL that can be read: {url[:100]!r}", reason="PLAN_INVALID")
    return Address(secure, parts.hostname, port or (443 if secure else 80)), target
