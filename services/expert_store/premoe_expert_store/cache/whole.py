"""Whether bytes are those of a blob."""

from __future__ import annotations

import os
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


def wrong_pieces(blob: memoryview, indices: Sequence[int], sums: Sequence[int]) -> list[int]:
    """Pieces of a blob that do not match their sums."""
    places = [(index, piece(index, len(blob))) for index in indices]
    return [index for index, at in places if crc32c(blob[at.offset : at.end]) != sums[index]]


def _parts(fd: int, num_bytes: int) -> Iterator[memoryview]:
    """Piece by piece, in memory that is used again. Ends early where the disk cannot be read."""
    view = memoryview(bytearray(min(PIECE_BYTES, num_bytes)))
    with suppress(OSError):
        for start in range(0, num_bytes, PIECE_BYTES):
            part = view[: num_bytes - start]
            if os.preadv(fd, [part], start) != len(part):
                return
            yield part
