"""Which of vLLM's parameters the fields of a blob belong to, in the words of vLLM's own weight loader. No vLLM here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from premoe_runtime.formats.errors import InvalidInput

_GATE_UP = ("w1", "w3")
_GPT_OSS = {
    "gate_up": "w13_weight",
    "down": "w2_weight",
    "gate_up_bias": "w13_bias",
    "down_bias": "w2_bias",
    "gate_up_proj_blocks": "w13_weight",
    "down_proj_blocks": "w2_weight",
    "gate_up_proj_scales": "w13_weight_scale",
    "down_proj_scales": "w2_weight_scale",
}
_TURNS = ("gate_up", "gate_up_bias")
"""Fields in which a blob has all of the gate's rows first, and GPT-OSS's kernels want them in turns with the others."""


class Shard(NamedTuple):
    """What vLLM's loader is called with. ``part``: its name for where in the parameter this goes."""

    parameter: str
    part: str
    tensor: torch.Tensor


@dataclass(frozen=True, slots=True)
class Names:
    """What a model of vLLM calls the parts of an expert on disk: ``gate_proj``, ``up_proj`` and ``down_proj``, say.

    ``gpt_oss``: its loader is the one of GPT-OSS, which knows whole fields only.
    """

    gate: str
    up: str
    down: str
    gpt_oss: bool = False

    def shards(self, field: str, tensor: torch.Tensor) -> Iterator[Shard]:
        """Of one field of a blob. Raises InvalidInput for what vLLM does not take."""
        if self.gpt_oss:
            yield self._of_gpt_oss(field, tensor)
        elif field == "gate_up":
            for part, half in zip(_GATE_UP, tensor.chunk(2), strict=True):
                yield Shard("w13_weight", part, half)
        elif field == "down":
            yield Shard("w2_weight", "w2", tensor)
        elif field.endswith(".g_idx"):
            if bool((tensor.diff() < 0).any()):
                raise InvalidInput(
                    f"{field}: columns are grouped by importance, which no kernel of vLLM's for experts knows; use the "
                    "engine hf",
                    reason="ENGINE_UNSUPPORTED",
                )
        else:
            name, _, what = field.partition(".")
            weights, part = {self.gate: ("w13", "w1"), self.up: ("w13", "w3"), self.down: ("w2", "w2")}[name]
            yield Shard(f"{weights}_{what}", part, tensor)

    def _of_gpt_oss(self, field: str, tensor: torch.Tensor) -> Shard:
        parameter = _GPT_OSS[field]
        if field in _TURNS:
            tensor = torch.stack(tensor.chunk(2), dim=1).flatten(0, 1)
        if field in ("gate_up", "down"):
            tensor = tensor.T  # as checkpoints have it
        return Shard(parameter, f"gpt_oss_{parameter.partition('_')[0]}", tensor)
