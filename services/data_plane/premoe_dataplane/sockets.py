"""Bytes of a stream socket: lines through a small buffer, bodies straight into memory that is there."""

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections.abc import Callable

from premoe_dataplane.stopped import Stopped

TICK_S = 0.25
"""How soon a reader that waits sees that nobody wants the bytes any more."""
SLOWEST = 3
"""A body may take so many times the bound of silence: a peer whose bytes trickle must not hold a reader for ever."""
_LINE_BYTES = 8192
_BUFFER_BYTES = 16 << 10


class Cut(OSError):
    """The peer has closed the connection."""


class Malformed(OSError):
    """The peer does not speak the protocol that is spoken with it."""


class Incoming:
    """What comes on a connected socket, plain or TLS. One thread at a time; ``ready`` before each use.

    A plain socket is read with MSG_WAITALL, which is worth 10 to 25 % (data-plane.md section 2) and needs a blocking
    one; the kernel's own timeout ends each call after a quarter of a second.
    """

    def __init__(self, sock: socket.socket, idle_s: float) -> None:
        self._sock, self._idle_s = sock, idle_s
        self._plain = not isinstance(sock, ssl.SSLSocket)
        self._buffer = bytearray(_BUFFER_BYTES)
        self._start = self._end = 0
        self._stopped: Callable[[], bool] = lambda: False

    def ready(self, stopped: Callable[[], bool]) -> None:
        """Take the socket over; ``stopped`` is asked while there is nothing to read."""
        self._stopped = stopped
        if self._plain:
            self._sock.settimeout(None)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(TICK_S))
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(self._idle_s))
        else:
            self._sock.settimeout(TICK_S)

    def give_back(self, timeout_s: float | None) -> None:
        """The socket as others want it, with a timeout of Python's."""
        if self._plain:
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                self._sock.setsockopt(socket.SOL_SOCKET, option, _timeval(0))
        self._sock.settimeout(timeout_s)

    def line(self) -> bytes:
        """The next line without its end. Raises Cut, TimeoutError, Malformed when it is too long, and Stopped."""
        while True:
            found = self._buffer.find(b"\n", self._start, self._end)
            if found >= 0:
                line = bytes(self._buffer[self._start : found]).rstrip(b"\r")
                self._start = found + 1
                return line
            self._more()

    def fill(self, into: memoryview) -> None:
        """Exactly as many bytes as there is room. Raises as ``line`` does."""
        have = min(self._end - self._start, len(into))
        into[:have] = self._buffer[self._start : self._start + have]
        self._start += have
        until = time.monotonic() + SLOWEST * self._idle_s
        while have < len(into):
            have += self._receive(into[have:], socket.MSG_WAITALL)
            if time.monotonic() > until:
                raise TimeoutError(f"only {have} bytes came in {SLOWEST * self._idle_s:g} s")

    def skip(self, num_bytes: int) -> None:
        """Read and drop. Raises as ``line`` does."""
        scratch = memoryview(bytearray(min(num_bytes, 1 << 16)))
        while num_bytes:
            part = scratch[: min(num_bytes, len(scratch))]
            self.fill(part)
            num_bytes -= len(part)

    def _more(self) -> None:
        """At least one more byte in the buffer."""
        if self._end - self._start >= _LINE_BYTES:
            raise Malformed("a line of the answer is too long")
        kept = self._buffer[self._start : self._end]
        self._buffer[: len(kept)] = kept
        self._start, self._end = 0, len(kept)
        # Not more than a line: what a body has in the buffer is copied once more.
        room = memoryview(self._buffer)[self._end : self._end + 512]
        self._end += self._receive(room, 0)

    def _receive(self, into: memoryview, flags: int) -> int:
        since = time.monotonic()
        while True:
            if self._stopped():
                raise Stopped
            try:
                count = self._sock.recv_into(into, len(into), flags if self._plain else 0)
            except (BlockingIOError, InterruptedError, TimeoutError):
                if time.monotonic() - since >= self._idle_s:
                    raise TimeoutError(f"nothing came for {self._idle_s:g} s") from None
                continue
            if not count:
                raise Cut("the connection was closed")
            return count


def _timeval(seconds: float) -> bytes:
    return struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
