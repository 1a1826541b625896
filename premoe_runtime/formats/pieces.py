"""Pieces of blobs: what is checked on its way, cached, and fetched again alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

PIECE_BYTES = 1_048_512
"""1 MiB less 64 B: a Redis value of this size stays within one class of its allocator (data-plane.md section 3)."""


class Hole(NamedTuple):
    """Bytes of a blob."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length


def piece_count(num_bytes: int) -> int:
    """Of a blob."""
    return -(-num_bytes // PIECE_BYTES)


def piece(index: int, num_bytes: int) -> Hole:
    """Where piece ``index`` of a blob lies; the last one may be shorter."""
    start = index * PIECE_BYTES
    return Hole(start, min(PIECE_BYTES, num_bytes - start))


def pieces(num_bytes: int) -> list[Hole]:
    """Where the pieces of a blob lie."""
    return [piece(index, num_bytes) for index in range(piece_count(num_bytes))]


def touched(num_bytes: int, holes: Sequence[Hole]) -> list[tuple[int, Hole]]:
    """Index and place of the pieces that share bytes with ``holes``."""
    return [
        (index, one)
        for index, one in enumerate(pieces(num_bytes))
        if any(hole.offset < one.end and one.offset < hole.end for hole in holes)
    ]


def runs(indices: Sequence[int], num_bytes: int) -> list[Hole]:
    """The fewest ranges that cover pieces, given by ascending index, and nothing else."""
    found: list[Hole] = []
    for index in indices:
        one = piece(index, num_bytes)
        if found and found[-1].end == one.offset:
            found[-1] = Hole(found[-1].offset, found[-1].length + one.length)
        else:
            found.append(one)
    return found
