"""What the project knows of a model family, and what that makes of one checkpoint's config. Values only, no torch.

A family is one file with one ``FamilySpec``. Names and shapes of tensors are not in it: they come from the stock class
(``stock.py``), so that a spec only says what no class tells: how the router computes, how experts lie in checkpoints,
and where both sit in the module tree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from premoe_runtime.formats.manifest import RouterSpec

RouterOutput = Literal["logits", "weights", "ids"]


@dataclass(frozen=True, slots=True)
class ExpertField:
    """One field of every expert's blob: a tensor that a kernel reads as a whole.

    ``parts``: its tensors where experts are stored one by one, named after ``<experts>.<expert>.``, one above the other
    in the blob. ``fused``: the stock parameter [E, ...], named after ``<experts>.``, which is also how fused
    checkpoints store it: with columns and rows swapped when ``transposed``, with the rows of the parts taking turns
    when ``interleaved``. Blobs hold neither. ``dtype``: None for the one dtype that all weights of an expert share.
    """

    name: str
    fused: str
    parts: tuple[str, ...]
    transposed: bool = False
    interleaved: bool = False
    dtype: str | None = None


def gated_experts(*, gate: str, up: str, down: str) -> tuple[ExpertField, ...]:
    """Two-matrix experts with a gate: ``gate_up`` [2I, H], gate rows first, and ``down`` [H, I]; no biases."""
    return (
        ExpertField("gate_up", fused="gate_up_proj", parts=(f"{gate}.weight", f"{up}.weight")),
        ExpertField("down", fused="down_proj", parts=(f"{down}.weight",)),
    )


@dataclass(frozen=True, slots=True)
class FamilySpec:
    """A family. ``router`` makes the arithmetic of the stock configuration; paths are those of the module tree.

    ``layers``: the list of transformer blocks; ``sparse``: a block's sparse part, where ``router_module`` and
    ``experts_module`` are. ``router_returns``: what the sparse part expects of its router, in order.
    """

    name: str
    """``model_type`` of config.json."""
    router: Callable[[Any], RouterSpec]
    fields: tuple[ExpertField, ...]
    layers: str = "model.layers"
    sparse: str = "mlp"
    router_module: str = "gate"
    experts_module: str = "experts"
    router_returns: tuple[RouterOutput, ...] = ("logits", "weights", "ids")


@dataclass(frozen=True, slots=True)
class SkeletonTensor:
    """A tensor beside the routed experts. ``memory``: its name in the module tree.

    ``optional``: tied to another, so it may be absent. ``own_dtype``: kept as wide as it is stored (routers, what the
    stock class keeps in float32); the others take the model's dtype, as the stock class casts them.
    """

    memory: str
    shape: tuple[int, ...]
    optional: bool = False
    own_dtype: bool = False


@dataclass(frozen=True, slots=True)
class ExpertTensor:
    """One canonical tensor of an expert, and its rows inside a blob field: ``shape`` from row ``row`` on."""

    suffix: str
    field: str
    row: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MoeModel:
    """A checkpoint's expected content, worked out from its config alone.

    ``blocks[i]`` of the ``num_blocks`` transformer blocks holds MoE layer ``i``; ``experts_prefix[i]`` is its experts'
    name on disk, ``experts_memory[i]`` in the module tree. ``shapes``: one expert's shape of every field.
    ``skeleton``: every other tensor by its name on disk. ``recomputed``: last names of modules whose stored tensors
    are always computed anew.
    """

    spec: FamilySpec
    router: RouterSpec
    top_k: int
    layer_experts: tuple[int, ...]
    """Experts of every MoE layer: by the config equally many, which is the most that ``cut_to`` takes."""
    hidden_size: int
    context: int
    """Longest sequence, rope scaling included."""
    num_blocks: int
    blocks: tuple[int, ...]
    experts_prefix: tuple[str, ...]
    experts_memory: tuple[str, ...]
    routers: tuple[str, ...]
    """Names on disk of the routers' weights, one row an expert of their layer."""
    shapes: Mapping[str, tuple[int, ...]]
    skeleton: Mapping[str, SkeletonTensor]
    recomputed: frozenset[str] = frozenset()
    stated_dtype: str = ""
    """What the config calls its weights, as safetensors names it; empty when it says nothing."""

    @property
    def family(self) -> str:
        return self.spec.name

    @property
    def num_experts(self) -> int:
        """Of the layer that has the most."""
        return max(self.layer_experts)

    def cut_to(self, layer_experts: Sequence[int]) -> MoeModel:
        """The same model with fewer experts in some layers, which are then the first ones, as pruning leaves it.

        A config has one number for all layers, so it cannot say this: routers and experts, or a manifest, do.
        """
        skeleton = dict(self.skeleton)
        for name, count in zip(self.routers, layer_experts, strict=True):
            skeleton[name] = replace(skeleton[name], shape=(count, *skeleton[name].shape[1:]))
        return replace(self, layer_experts=tuple(layer_experts), skeleton=skeleton)

    @property
    def expert_tensors(self) -> tuple[ExpertTensor, ...]:
        """One expert's tensors as a checkpoint stores them one by one; identities are taken over these."""
        found = []
        for field in self.spec.fields:
            rows, *rest = self.shapes[field.name]
            each = rows // len(field.parts)
            found += [
                ExpertTensor(part, field.name, index * each, (each, *rest)) for index, part in enumerate(field.parts)
            ]
        return tuple(found)

    def expert_name(self, layer: int, expert: int, tensor: ExpertTensor) -> str:
        return f"{self.experts_prefix[layer]}.{expert}.{tensor.suffix}"

    def fused_names(self, layer: int, field: ExpertField) -> tuple[str, ...]:
        """Names that a checkpoint with fused experts may give the field: transformers' own, or with the disk prefix."""
        prefixes = dict.fromkeys((self.experts_memory[layer], self.experts_prefix[layer]))
        return tuple(f"{prefix}.{field.fused}" for prefix in prefixes)

    def fused_shape(self, layer: int, field: ExpertField) -> tuple[int, ...]:
        """[experts of the layer, *shape] as a fused tensor is stored."""
        shape = self.shapes[field.name]
        return (self.layer_experts[layer], *(reversed(shape) if field.transposed else shape))


def context_length(max_positions: int, rope: Mapping[str, object] | None) -> int:
    """Longest sequence of a config with these positions and rope parameters; scaling lengthens it by its factor.

    YaRN says the length that it starts from; older configs call the kind ``type``.
    """
    rope = rope or {}
    kind, factor = rope.get("rope_type", rope.get("type")), rope.get("factor")
    if kind not in ("yarn", "linear") or not isinstance(factor, int | float):
        return max_positions
    start = rope.get("original_max_position_embeddings") if kind == "yarn" else None
    return max(max_positions, int((start if isinstance(start, int) else max_positions) * factor))
