"""What the service asks of a blob cache. The cache may lose anything at any time, whole blobs or pieces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from premoe_runtime.formats.pieces import Hole


class Wanted(NamedTuple):
    """A blob to read: its digest, and writable memory of its exact length."""

    digest: str
    into: memoryview


def blob_key(digest: str) -> str:
    """Where a blob's pieces lie in Redis, without their numbers: what a plan's source names."""
    return f"premoe:blob:{digest}"


def piece_key(blob: str, index: int) -> str:
    """The key of a piece, by that of its blob."""
    return f"{blob}:{index}"


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
