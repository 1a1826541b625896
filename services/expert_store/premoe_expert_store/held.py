"""A blob that somebody reads: what the ways of serving it may rely on."""

from __future__ import annotations

import os
from pathlib import Path

from premoe_dataplane.plan import Tier

from premoe_expert_store.filling import Arrival, Origin

_TIERS: dict[Origin, Tier] = {"node": "node", "redis": "redis", "peer": "node", "object": "object"}


class HeldBlob:
    """A blob that stays while it is held, readable as far as it has landed. Belongs to the event loop of its shelf.

    ``fd`` is a regular file of exactly ``num_bytes`` from the first moment on (a hole where nothing has landed), fit
    for ``os.sendfile``, ``os.preadv`` and ``mmap``; its position is shared by all who hold the blob, so it is neither
    read from nor moved. It is closed when nobody holds the blob: use ``os.dup`` for what outlives that.
    Bytes that have landed never change.
    """

    def __init__(self, arrival: Arrival) -> None:
        self._arrival = arrival

    @property
    def num_bytes(self) -> int:
        return self._arrival.num_bytes

    @property
    def digest(self) -> str:
        """blake3, lower-case hex."""
        return self._arrival.digest

    @property
    def fd(self) -> int:
        return self._arrival.room.fd

    @property
    def whole(self) -> bool:
        """Whether all of it is there and matches its digest; nothing is to be waited for then."""
        return self._arrival.landing.right

    @property
    def landed_bytes(self) -> int:
        """Bytes from the start for which ``landed`` returns at once."""
        return self._arrival.landing.readable_bytes

    @property
    def tier(self) -> Tier:
        """Where its bytes came from: the farthest of several. The cache of another replica counts as node's."""
        return _TIERS[self._arrival.landing.origin]

    @property
    def path(self) -> Path | None:
        """Its name in the node cache, once it is whole and if it is kept there. It may lose it while it is held."""
        return self._arrival.room.path

    async def landed(self, end: int) -> None:
        """Returns once bytes [0, ``end``) are there and their pieces' crc32c are right.

        Of a pack without piece sums once all of it matches its digest. May be cancelled, also by a timeout. Raises
        CorruptData (no tier has right bytes), Unavailable and PremoeError (object storage): no byte after what had
        landed will come then.
        """
        if not 0 <= end <= self.num_bytes:
            raise ValueError(f"a blob of {self.num_bytes} bytes has no byte {end}")
        await self._arrival.landed(end)

    def read(self, offset: int, length: int) -> bytes:
        """Bytes that have landed. Blocking: not on the event loop."""
        return os.pread(self.fd, length, offset)
