"""Names of things: ids are lower-case hex blake3 digests unless said otherwise."""

from __future__ import annotations

from typing import NamedTuple, NewType

ModelId = NewType("ModelId", str)
WeightsId = NewType("WeightsId", str)
PatternId = NewType("PatternId", str)
SetId = NewType("SetId", str)


class ExpertId(NamedTuple):
    """One routed expert: ``layer`` counts MoE layers from 0 (not transformer blocks), ``expert`` its experts."""

    layer: int
    expert: int

    def __str__(self) -> str:
        return f"layer {self.layer} expert {self.expert}"
