"""What the byte server asks of the shelf, and what the shelf tells."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, TypeAlias

from premoe_dataplane.plan import Tier

from premoe_expert_store.catalogue import Pack
from premoe_runtime.formats.ids import ExpertId

Purpose = Literal["demand", "prefetch", "peer"]
"""``peer``: another replica asks, which must not be asked in turn."""


class HeldBlob(Protocol):
    """A blob that stays while it is held. Readable up to what has landed, which may be all of it."""

    @property
    def num_bytes(self) -> int: ...
    @property
    def digest(self) -> str: ...
    @property
    def tier(self) -> Tier:
        """Where its bytes came from."""
        ...

    @property
    def fd(self) -> int:
        """Of a file in which byte ``n`` of the blob is byte ``n``."""
        ...

    @property
    def path(self) -> Path | None:
        """Its file, once it is whole and in the cache."""
        ...

    async def landed(self, end: int) -> None:
        """Wait for bytes ``[0, end)``, checked. Raises CorruptData, NotFound, Unavailable, Exhausted."""
        ...


class Counts(NamedTuple):
    """Of blobs that were to be prefetched."""

    present: int
    under_way: int
    refused: int


@dataclass(frozen=True, slots=True)
class Progress:
    """What the cache holds of a pack, and what is on its way: blobs and bytes."""

    present: int
    under_way: int
    arrived_bytes: int
    wanted_bytes: int


@dataclass(frozen=True, slots=True)
class BlobsInvalid:
    """Blobs of which a copy was wrong, and where that lay."""

    experts: tuple[ExpertId, ...]
    tier: Tier


@dataclass(frozen=True, slots=True)
class PackGone:
    """A pack that can no longer be read, and why."""

    message: str


Event: TypeAlias = Progress | BlobsInvalid | PackGone


class Blobs(Protocol):
    """What readers ask for blobs."""

    def opened(self, pack: Pack, expert: ExpertId) -> int | None:
        """A descriptor of a blob that is whole and right in the cache, which the caller closes; None: hold it."""
        ...

    def hold(self, pack: Pack, expert: ExpertId, *, purpose: Purpose) -> AbstractAsyncContextManager[HeldBlob]:
        """Join or begin its arrival, and keep it while the block runs."""
        ...
