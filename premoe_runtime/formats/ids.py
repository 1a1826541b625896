"""Names of things: ids are lower-case hex blake3 digests unless said otherwise."""

from __future__ import annotations

import re
from typing import NamedTuple, NewType

ModelId = NewType("ModelId", str)
WeightsId = NewType("WeightsId", str)
PatternId = NewType("PatternId", str)
SetId = NewType("SetId", str)

DIGEST_PREFIX = "blake3:"
_TENANT = re.compile(r"[0-9a-z]([0-9a-z-]{0,61}[0-9a-z])?", re.ASCII)


def bare_digest(name: str) -> str:
    """An id without the algorithm in front, which Kubernetes objects spell out (``blake3:1234…``)."""
    return name.removeprefix(DIGEST_PREFIX)


def is_tenant(name: str) -> bool:
    """Whether a name may be that of a tenant: a DNS label in lower case."""
    return bool(_TENANT.fullmatch(name))


class ExpertId(NamedTuple):
    """One routed expert: ``layer`` counts MoE layers from 0 (not transformer blocks), ``expert`` its experts."""

    layer: int
    expert: int

    def __str__(self) -> str:
        return f"layer {self.layer} expert {self.expert}"
