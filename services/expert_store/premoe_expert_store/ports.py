"""What the service asks of a blob cache. The cache may lose anything at any time, whole blobs or pieces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Hole(NamedTuple):
    """Bytes of a blob that the cache does not have."""

    offset: int
    length: int


class Wanted(NamedTuple):
    """A blob to read: its digest, and writable memory of its exact length."""

    digest: str
    into: memoryview


class BlobCache(Protocol):
    """Blobs by digest. Blocking; safe from several threads. All methods raise Unavailable, ``write`` Exhausted too."""

    def read(self, wanted: Sequence[Wanted]) -> list[tuple[Hole, ...]]:
        """Fill what is there; per blob, the holes that are left, ascending. Does not check digests."""
        ...

    def write(self, digest: str, blob: memoryview, holes: Sequence[Hole]) -> None:
        """Keep the pieces of ``blob`` that touch ``holes``."""
        ...

    def holds(self, digests: Sequence[str], num_bytes: int) -> list[bool]:
        """Which of these blobs, ``num_bytes`` long each, are there without holes."""
        ...

    def forget(self, digest: str, num_bytes: int) -> None:
        """Drop a blob whose bytes turned out wrong."""
        ...

    def close(self) -> None: ...


PIECE_BYTES = 1_048_512
"""Unit of caching: 1 MiB less 64 B, which stays within one size class of Redis' allocator (data-plane.md section 3)."""


def pieces(num_bytes: int) -> list[Hole]:
    """Where the pieces of a blob lie; the last one may be shorter."""
    return [Hole(start, min(PIECE_BYTES, num_bytes - start)) for start in range(0, num_bytes, PIECE_BYTES)]


def touched(num_bytes: int, holes: Sequence[Hole]) -> list[tuple[int, Hole]]:
    """Index and place of the pieces that share bytes with ``holes``."""
    return [
        (index, piece)
        for index, piece in enumerate(pieces(num_bytes))
        if any(hole.offset < piece.offset + piece.length and piece.offset < hole.offset + hole.length for hole in holes)
    ]
