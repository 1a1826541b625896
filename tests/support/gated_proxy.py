"""A TCP proxy that lets answers pass up to a number of bytes, and the rest when a test says so."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

CHUNK_BYTES = 65536


class GatedProxy:
    """Forwards to ``url``'s host and port; open at first."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._left: int | None = None
        self._changed = threading.Condition()
        self._ends: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def let_pass(self, num_bytes: int | None) -> None:
        """Of answers from now on, over all connections; None: all."""
        with self._changed:
            self._left = num_bytes
            self._changed.notify_all()

    def close(self) -> None:
        self.let_pass(None)
        self._listener.close()
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                self._ends += [client, server]
                threading.Thread(target=self._pump, args=(client, server, False), daemon=True).start()
                threading.Thread(target=self._pump, args=(server, client, True), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, gated: bool) -> None:
        with suppress(OSError):
            while data := source.recv(CHUNK_BYTES):
                if gated:
                    self._wait_for(len(data))
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def _wait_for(self, num_bytes: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._left is None or self._left >= num_bytes)
            if self._left is not None:
                self._left -= num_bytes


@contextmanager
def gated_proxy(url: str) -> Iterator[GatedProxy]:
    proxy = GatedProxy(url)
    try:
        yield proxy
    finally:
        proxy.close()
