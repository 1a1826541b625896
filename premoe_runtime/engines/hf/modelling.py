"""Per family: the stock classes, and how on-disk names differ from the module tree's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn
from transformers import (
    MixtralForCausalLM,
    OlmoeForCausalLM,
    PreTrainedModel,
    Qwen3MoeForCausalLM,
)

from premoe_runtime.formats.errors import InvalidInput


class Router(Protocol):
    """A stock router, or ours."""

    weight: nn.Parameter
    """[E, H]"""


class Experts(Protocol):
    """A stock experts module, or ours; E is the number of slots there."""

    gate_up_proj: torch.Tensor
    """[E, 2I, H]"""
    down_proj: torch.Tensor
    """[E, H, I]"""
    act_fn: nn.Module


class MoeBlock(Protocol):
    """What the stock sparse blocks have in common; both members may be replaced."""

    gate: Router
    experts: Experts


@dataclass(frozen=True, slots=True)
class Modelling:
    """``renames``: name parts on disk -> in memory. All families have ``gate`` and ``experts`` in a block's ``mlp``."""

    model_class: type[PreTrainedModel]
    renames: Mapping[str, str] = field(default_factory=dict)

    def in_memory(self, name: str) -> str:
        """The module tree's name of an on-disk tensor."""
        for disk, memory in self.renames.items():
            name = name.replace(disk, memory)
        return name

    def moe_block(self, model: PreTrainedModel, block: int) -> MoeBlock:
        """The sparse block of a transformer block. Raises InvalidInput when that one is dense or does not exist."""
        layers = model.model.layers
        mlp: MoeBlock | None = layers[block].mlp if 0 <= block < len(layers) else None
        if mlp is None or not hasattr(mlp, "experts") or not hasattr(mlp, "gate"):
            raise InvalidInput(
                f"the pack says transformer block {block} is a MoE layer, but the config does not",
                reason="PACK_MISMATCH",
            )
        return mlp


MODELLING: Mapping[str, Modelling] = {
    "qwen3_moe": Modelling(Qwen3MoeForCausalLM),
    "mixtral": Modelling(MixtralForCausalLM, {".block_sparse_moe.": ".mlp."}),
    "olmoe": Modelling(OlmoeForCausalLM),
}


def modelling_of(family: str) -> Modelling:
    """Raises InvalidInput for a family this build cannot run."""
    if family not in MODELLING:
        raise InvalidInput(
            f"family {family!r} cannot be run; supported: {', '.join(sorted(MODELLING))}", reason="UNKNOWN_FAMILY"
        )
    return MODELLING[family]
