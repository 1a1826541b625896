"""A vector index in numpy: exact, quick, and gone with the process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from premoe_runtime.formats.arrays import F32
from premoe_runtime.formats.pattern_set import PatternSet
from premoe_runtime.formats.recognition import Neighbour


class MemoryIndex:
    """Implements PatternIndex: one matrix per pattern of every set."""

    def __init__(self) -> None:
        self._sets: dict[str, dict[str, F32]] = {}

    async def publish(self, set_id: str, pattern_set: PatternSet) -> None:
        self._sets[set_id] = {member.pattern_id: pattern_set.exemplars_of(member) for member in pattern_set.specialists}

    async def count(self, set_id: str, dimension: int) -> int:
        patterns = self._sets.get(set_id, {}).values()
        return sum(len(rows) for rows in patterns if rows.shape[1] == dimension)

    async def query(self, set_id: str, vector: F32, wanted: Mapping[str, int]) -> Sequence[Neighbour]:
        patterns = self._sets.get(set_id, {})
        found: list[Neighbour] = []
        for pattern_id, count in wanted.items():
            rows = patterns.get(pattern_id)
            if rows is not None:
                best = np.sort(rows @ vector)[::-1][:count]
                found.extend(Neighbour(pattern_id, float(similarity)) for similarity in best)
        return found

    async def delete(self, set_id: str) -> bool:
        return self._sets.pop(set_id, None) is not None

    async def close(self) -> None:
        self._sets.clear()
