"""What RPCs and byte server ask of the shelf, which has the blobs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
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


class Shelf(Blobs, Protocol):
    """Blobs of packs, in this node's cache or on their way there. Call from one event loop."""

    def present(self, pack: Pack, experts: Sequence[ExpertId]) -> list[bool]:
        """Which are whole in the node's cache now."""
        ...

    def prefetch(self, pack: Pack, experts: Sequence[ExpertId]) -> Counts:
        """Begin to bring them; does not wait."""
        ...

    def lease(self, pack: Pack, experts: Sequence[ExpertId]) -> tuple[str, float]:
        """Its id and end, seconds since 1970."""
        ...

    def renew(self, lease_id: str) -> float:
        """Its new end. Raises NotFound (LEASE_ENDED)."""
        ...

    def release(self, lease_id: str) -> None:
        """Also of one that has ended."""
        ...

    def watch(self, pack: Pack) -> AsyncGenerator[Event, None]:
        """Progress now, then what happens."""
        ...

    async def close(self) -> None: ...
