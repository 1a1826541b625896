"""Where the blobs of a swap may be read: what one Resolve returns, as values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from premoe_runtime.formats.ids import ExpertId

Scheme = Literal["file", "http", "redis", "object", "grpc"]
Tier = Literal["node", "redis", "object"]

SCHEMES: tuple[Scheme, ...] = ("file", "http", "redis", "object", "grpc")


@dataclass(frozen=True, slots=True)
class Source:
    """One way to read a blob. ``tier`` is where the bytes lie now, ``scheme`` how they are read.

    ``url`` is a path (file), a signed URL (http), a key without the piece's number (redis), an object's path (object),
    or empty (grpc); the blob starts ``offset`` bytes from its start.
    """

    scheme: Scheme
    tier: Tier
    url: str = ""
    offset: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class BlobPlan:
    """A blob of ``num_bytes``, its blake3 (lower-case hex), the crc32c of its pieces, and its sources, best first.

    Without ``checks`` only the whole can be checked.
    """

    expert: ExpertId
    digest: str
    num_bytes: int
    sources: tuple[Source, ...]
    checks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class SwapPlan:
    """The blobs of one swap in the order asked. ``expires_at``: unix seconds until which the sources are valid."""

    blobs: Sequence[BlobPlan]
    lease_id: str
    expires_at: float
