"""A TCP proxy whose open connections can be frozen: the peer stays connected and hears nothing more."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

CHUNK_BYTES = 65536


class FreezingProxy:
    """Forwards to ``url``'s host and port. New connections pass even while older ones are frozen."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 443)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._frozen: set[int] = set()
        self._open: dict[int, tuple[socket.socket, socket.socket]] = {}
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._listener.getsockname()[1]}"

    def freeze(self) -> int:
        """Freeze what is open now; returns how many connections."""
        with self._lock:
            self._frozen |= self._open.keys()
            return len(self._open)

    def close(self) -> None:
        self._listener.close()
        with self._lock:
            pairs = list(self._open.values())
        for pair in pairs:
            for end in pair:
                _shut(end)

    def _accept(self) -> None:
        number = 0
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
            except OSError:
                if self._listener.fileno() < 0:
                    return
                client.close()
                continue
            number += 1
            with self._lock:
                self._open[number] = (client, server)
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(number, source, sink), daemon=True).start()

    def _pump(self, number: int, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(CHUNK_BYTES):
                if number not in self._frozen:
                    sink.sendall(data)
        except OSError:
            pass
        with self._lock:
            if number in self._frozen and source is not self._open.get(number, (None, None))[0]:
                return  # the far end left; the near one must not notice
            self._open.pop(number, None)
        _shut(source)
        _shut(sink)


def _shut(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


@contextmanager
def freezing_proxy(url: str) -> Iterator[FreezingProxy]:
    proxy = FreezingProxy(url)
    try:
        yield proxy
    finally:
        proxy.close()
