"""What the service asks of a vector index. The index is a cache: object storage can rebuild it at any time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from premoe_runtime.formats.arrays import F32
from premoe_runtime.formats.pattern_set import PatternSet
from premoe_runtime.formats.recognition import Neighbour


class PatternIndex(Protocol):
    """Exemplars of many pattern sets, searchable one set at a time. All methods raise Unavailable."""

    async def publish(self, set_id: str, pattern_set: PatternSet) -> None:
        """Add the exemplars of every specialist of a set. Idempotent: sets are immutable."""
        ...

    async def count(self, set_id: str, dimension: int) -> int:
        """Exemplars of a set whose vectors have ``dimension`` values; 0 when it is not there."""
        ...

    async def query(self, set_id: str, vector: F32, wanted: Mapping[str, int]) -> Sequence[Neighbour]:
        """The nearest exemplars of each pattern: ``wanted`` says how many of which pattern id.

        ``vector`` is a unit f32[D']. Fewer come back only when the index holds fewer.
        """
        ...

    async def delete(self, set_id: str) -> bool:
        """Remove a set; False when it was not there."""
        ...

    async def close(self) -> None: ...
