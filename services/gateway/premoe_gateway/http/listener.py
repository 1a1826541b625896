"""A listening socket that bounds how many of its connections are open: under TLS a client that never begins a handshake
is no connection to asyncio or uvicorn, but it has a file of ours all the same.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import time
from typing import Any
from weakref import WeakSet

log = logging.getLogger(__name__)

_QUIET_S = 10.0
"""Seconds between two lines about clients that are turned away."""
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Listener(socket.socket):
    """Takes over ``bound``, which listens. Beyond ``most`` open connections new ones are closed at once."""

    def __init__(self, bound: socket.socket, most: int) -> None:
        super().__init__(fileno=bound.detach())
        self._most = most
        self._open: WeakSet[socket.socket] = WeakSet()
        self._spare = os.open(os.devnull, os.O_RDONLY)
        """A file to give up for closing a client where there is no other left; it would wait and be seen for ever."""
        self._told = -_QUIET_S

    def accept(self) -> tuple[socket.socket, Any]:
        """As a socket's. Raises ConnectionAbortedError where there is no room: asyncio comes back for the next."""
        try:
            connection, address = super().accept()
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            self._turn_away()
            raise self._refused(f"{os.strerror(error.errno)}; raise the limit of open files (ulimit -n)") from None
        if len(self._open) >= self._most:
            self._open = WeakSet(held for held in self._open if held.fileno() >= 0)
        if len(self._open) >= self._most:
            connection.close()
            raise self._refused(f"{self._most} are open")
        self._open.add(connection)
        return connection, address

    def close(self) -> None:
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1
        super().close()

    def _turn_away(self) -> None:
        """Close the next client in the queue by the spare file."""
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1
        try:
            super().accept()[0].close()
            self._spare = os.open(os.devnull, os.O_RDONLY)
        except OSError:
            return  # another took the file, or the client has gone: the queue is looked at again soon

    def _refused(self, why: str) -> ConnectionAbortedError:
        now = time.monotonic()
        if now - self._told >= _QUIET_S:
            self._told = now
            log.warning("new HTTP connections are closed: %s", why)
        return ConnectionAbortedError(why)
