"""The blobs of one fetch and where they go, over as many plans as it takes. Memory is only what the receiver gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from premoe_dataplane.breaker import Place
from premoe_dataplane.pending import Pending
from premoe_dataplane.plan import SwapPlan
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.ids import ExpertId

Into = Callable[[ExpertId], memoryview]
Done = Callable[[ExpertId], None]


class Delivery:
    """``into`` is asked for room once a blob, when its reading begins; ``done`` is told once a blob, after its checks.

    Both are called from reading threads.
    """

    def __init__(self, experts: Sequence[ExpertId], num_bytes: int, into: Into, done: Done) -> None:
        self._into, self._done = into, done
        self._pending = {expert: Pending(expert, num_bytes) for expert in experts}
        self.delivered = 0
        self.refused: set[Place] = set()
        """Places that called the plan old and have sent nothing since: another plan's addresses may be no better."""

    @property
    def left(self) -> list[Pending]:
        """Blobs that are not delivered, in the order asked."""
        return [one for one in self._pending.values() if not one.whole]

    @property
    def missing(self) -> list[ExpertId]:
        """Those of ``left``."""
        return [one.expert for one in self.left]

    def renew(self, plan: SwapPlan) -> None:
        """Go on with the sources of another plan."""
        for blob in plan.blobs:
            self._pending[blob.expert].renew(blob)

    def room(self, pending: Pending) -> memoryview:
        """Where a blob goes. Raises what the receiver raises, InvalidInput when the room is not of its length."""
        if pending.room is None:
            room = self._into(pending.expert)
            if room.nbytes != pending.num_bytes:
                raise InvalidInput(f"{pending.expert}: {room.nbytes} bytes of room for a blob of {pending.num_bytes}")
            pending.room = room.cast("B")
        return pending.room

    def finish(self, pending: Pending) -> None:
        """A blob is in place and right. Raises what the receiver raises."""
        pending.whole, pending.room = True, None
        self.delivered += 1
        self._done(pending.expert)
