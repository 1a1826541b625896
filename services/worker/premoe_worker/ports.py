"""What the worker asks of the outside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from premoe_runtime.formats.choices import OnUnknown
from premoe_runtime.formats.ranking import Ranking
from premoe_runtime.formats.signature import Signatures
from premoe_worker.domain import PatternChoice


class Retrieval(Protocol):
    """The retrieval service. Every method raises NotFound, CorruptData or Unavailable."""

    async def retrieve(self, weights_id: str, signatures: Signatures, on_unknown: OnUnknown) -> PatternChoice:
        """The decision for the last turn of a conversation."""
        ...

    async def ranking(self, pattern_id: str) -> Ranking:
        """A pattern's ranking; cached, for patterns are immutable."""
        ...

    async def generalist(self, weights_id: str) -> str:
        """Pattern id of the live set's generalist; empty if it has none."""
        ...

    async def live_tasks(self, weights_id: str) -> Mapping[str, str]:
        """Pattern id of every task of the live set; the generalist goes by that name."""
        ...

    async def layer_slots(self, weights_id: str, kept: int, spare: int) -> tuple[int, ...]:
        """Slots of every MoE layer that the live set wants, ``kept + spare`` on average; empty if it is uniform."""
        ...

    async def first_pattern(self, weights_id: str) -> str:
        """The live set's generalist, else its first member; empty for an empty set."""
        ...
