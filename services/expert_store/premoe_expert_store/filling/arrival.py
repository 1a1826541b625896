"""A blob on its way to this node, readable as far as it has come."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from premoe_expert_store.cache.whole import RunningDigest, wrong_pieces
from premoe_expert_store.catalogue import Pack
from premoe_expert_store.filling.landing import Landing, Origin
from premoe_expert_store.filling.room import Room
from premoe_runtime.formats.errors import PremoeError
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.formats.pieces import piece

Sorted = tuple[list[int], list[int]]
"""Pieces that are right, as far as sums tell, and wrong ones."""


class Arrival:
    """Belongs to one event loop; only ``sort_out`` may be called from other threads.

    ``urgent``: somebody waits for it. ``alone``: other replicas are not to be asked, as one of them waits for it.
    """

    def __init__(self, pack: Pack, expert: ExpertId, *, urgent: bool, alone: bool = False) -> None:
        self.pack = pack
        self.expert = expert
        self.digest = pack.manifest.digest(expert)
        self.num_bytes = pack.blob_bytes
        self.sums = pack.sums(expert)
        self.urgent = urgent
        self.alone = asyncio.Event()
        if alone:
            self.alone.set()
        self.landing = Landing(self.num_bytes, checked=bool(self.sums))
        self.error: PremoeError | None = None
        self.redis_forgot = False
        """Whether wrong bytes made Redis forget all of it."""
        self._room: Room | None = None
        self._changed = asyncio.Event()
        self._running = RunningDigest()

    @property
    def room(self) -> Room:
        assert self._room is not None, "no room was given yet"
        return self._room

    @property
    def has_room(self) -> bool:
        return self._room is not None

    @property
    def done(self) -> bool:
        """Whether nothing will change any more."""
        return self.landing.right or self.error is not None

    def give(self, room: Room) -> None:
        """Where its bytes go, or lie."""
        self._room = room
        self._tell()

    def land(self, indices: Iterable[int], origin: Origin) -> None:
        """Pieces are there, and right as far as sums tell."""
        self.landing.land(indices, origin)
        self._tell()

    def lose_all(self) -> None:
        """All of it is to be read again."""
        self._running = RunningDigest()
        self.landing.lose_all()

    def finish(self) -> None:
        """All of it is there and right."""
        self.landing.found_right()
        self._tell()

    def fail(self, error: PremoeError) -> None:
        """It will not come any further."""
        self.error = error
        self._tell()

    async def roomy(self) -> Room:
        """Its room, once it has one. Raises what it failed with."""
        while self._room is None:
            await self._change()
        return self._room

    async def landed(self, end: int) -> None:
        """Returns once bytes [0, ``end``) may be read. Raises what it failed with before that."""
        while self.landing.readable_bytes < end:
            await self._change()

    async def ended(self) -> None:
        """Returns once nothing will change any more."""
        while not self.done:
            await self._changed.wait()

    def take(self, indices: Sequence[int], data: memoryview) -> Sorted:
        """Put neighbouring pieces in their place, wrong ones too; says which are right, and which wrong. Blocking."""
        start = piece(indices[0], self.num_bytes).offset
        wrong = wrong_pieces(data, indices, self.sums, self.num_bytes, start) if self.sums else []
        self.room.write(start, data)
        if not wrong:
            self._running.offer(start, data)
        return [index for index in indices if index not in wrong], wrong

    @property
    def digested(self) -> bool:
        """Whether ``digest_found`` has nothing left to read."""
        return self._running.taken_bytes == self.num_bytes

    def digest_found(self) -> str:
        """blake3 of what lies in its room. Blocking."""
        return self._running.finish(self.room.fd, self.num_bytes)

    def sort_out(self, indices: Sequence[int], view: memoryview | None = None) -> Sorted:
        """Of pieces whose bytes were written, to its room or ``view``: right ones, and wrong ones. Blocking."""
        if not self.sums:
            return list(indices), []
        wrong = wrong_pieces(self.room.view if view is None else view, indices, self.sums, self.num_bytes)
        return [index for index in indices if index not in wrong], wrong

    async def _change(self) -> None:
        if self.error is not None:
            # Another instance for everybody: a raised one carries the traceback of who raised it first.
            raise type(self.error)(str(self.error), reason=self.error.reason)
        await self._changed.wait()

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
