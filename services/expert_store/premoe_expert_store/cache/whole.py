"""Whether bytes are those of a blob."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import blake3
from crc32c import crc32c

from premoe_runtime.formats.pieces import PIECE_BYTES, piece


def digest_of(fd: int, num_bytes: int, pause: Callable[[int], None] = lambda num_bytes: None) -> str:
    """blake3 of a file's first bytes; some other one when they cannot be read. ``pause`` is called after each piece.

    Blocking.
    """
    digest = blake3.blake3()
    for part in _parts(fd, num_bytes):
        digest.update(part)
        pause(len(part))
    return digest.hexdigest()


def is_right(fd: int, num_bytes: int, digest: str, sums: Sequence[int]) -> bool:
    """Whether a file holds a blob, by the sums of its pieces, which is quicker, where there are any. Blocking."""
    if not sums:
        return digest_of(fd, num_bytes) == digest
    return [crc32c(part) for part in _parts(fd, num_bytes)] == list(sums)


def wrong_pieces(
    data: memoryview, indices: Sequence[int], sums: Sequence[int], num_bytes: int, start: int = 0
) -> list[int]:
    """Pieces of a blob of ``num_bytes`` that do not match their sums. ``data`` begins at its byte ``start``."""
    places = [(index, piece(index, num_bytes)) for index in indices]
    return [index for index, at in places if crc32c(data[at.offset - start : at.end - start]) != sums[index]]


class RunningDigest:
    """blake3 of a blob whose parts come in any order: those that come in turn are taken while they are at hand.

    ``offer`` is safe from several threads; ``finish`` comes after all of them.
    """

    def __init__(self) -> None:
        self._digest = blake3.blake3()
        self._taken = 0
        self._lock = threading.Lock()

    @property
    def taken_bytes(self) -> int:
        return self._taken

    def offer(self, start: int, data: memoryview) -> None:
        """Bytes that begin at byte ``start``; taken if it is their turn and nobody else's are being taken."""
        if self._lock.acquire(blocking=False):
            try:
                if start == self._taken:
                    self._digest.update(data)
                    self._taken += len(data)
            finally:
                self._lock.release()

    def finish(self, fd: int, num_bytes: int) -> str:
        """Take the rest from the blob's file; some other digest when it cannot be read."""
        for part in _parts(fd, num_bytes, self._taken):
            self._digest.update(part)
        return self._digest.hexdigest()


def _parts(fd: int, num_bytes: int, first: int = 0) -> Iterator[memoryview]:
    """Piece by piece, in memory that is used again. Ends early where the disk cannot be read."""
    view = memoryview(bytearray(min(PIECE_BYTES, num_bytes)))
    with suppress(OSError):
        for start in range(first, num_bytes, PIECE_BYTES):
            part = view[: num_bytes - start]
            if os.preadv(fd, [part], start) != len(part):
                return
            yield part
