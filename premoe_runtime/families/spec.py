"""What the project knows of a model family, and what that makes of one checkpoint's config. Values only, no torch.

A family is one file with one ``FamilySpec``. Names and shapes of tensors are not in it: they come from the stock class
(``stock.py``), so that a spec only says what no class tells: how the router computes, how experts lie in checkpoints,
and where both sit in the module tree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, Literal, NamedTuple

from premoe_runtime.families.state import BlockState
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.manifest import RouterSpec
from premoe_runtime.numbers.spec import NumberFormat

RouterOutput = Literal["logits", "weights", "ids"]


@dataclass(frozen=True, slots=True)
class ExpertField:
    """One field of every expert's blob: a tensor that a kernel reads as a whole.

    ``parts``: its tensors where experts are stored one by one, named after ``<experts>.<expert>.``, one above the other
    in the blob. ``fused``: the stock parameter [E, ...], named after ``<experts>.``, which is also how fused
    checkpoints store it: with columns and rows swapped when ``transposed``, with the rows of the parts taking turns
    when ``interleaved``; empty where no checkpoint fuses it. Blobs hold neither. ``dtypes``: those it may have; empty
    for the one dtype that all other fields of an expert share.
    """

    name: str
    fused: str
    parts: tuple[str, ...]
    transposed: bool = False
    interleaved: bool = False
    dtypes: tuple[str, ...] = ()


def gated_experts(*, gate: str, up: str, down: str) -> tuple[ExpertField, ...]:
    """Two-matrix experts with a gate: ``gate_up`` [2I, H], gate rows first, and ``down`` [H, I]; no biases."""
    return (
        ExpertField("gate_up", fused="gate_up_proj", parts=(f"{gate}.weight", f"{up}.weight")),
        ExpertField("down", fused="down_proj", parts=(f"{down}.weight",)),
    )


class RouterTensors(NamedTuple):
    """What one router computes with: ``weight`` [n, H], ``bias`` [n] or None, ``correction`` [n] or None."""

    weight: Any
    bias: Any
    correction: Any


@dataclass(frozen=True, slots=True)
class FamilySpec:
    """A family. ``router`` makes the arithmetic of the stock configuration; paths are those of the module tree.

    ``layers``: the list of transformer blocks; ``sparse``: a block's sparse part, where ``router_module`` and
    ``experts_module`` are. ``router_returns``: what the sparse part expects of its router, in order. In the router:
    ``router_weight`` [E, H], ``router_bias`` [E] of the logits, ``correction`` [E] or [1, E] of the choice; empty
    where the family has none. ``handed_correction``: one that the sparse part holds and hands to its router.
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
    router_weight: str = "weight"
    router_bias: str = ""
    correction: str = ""
    handed_correction: str = ""
    float32: tuple[str, ...] = ()
    """Last names of tensors that the class declares so, whatever the model's dtype."""
    aliases: tuple[str, ...] = ()
    """Other model types that are this family with other numbers."""
    chooser: str = ""
    """The sparse part's own function of hidden states and what its router returned, where that is logits alone: it
    returns ``router_returns``, which here the router has made already."""
    rotary: str = "rotary_emb"
    """In the decoder; empty where it has none."""
    state: Callable[[Any], BlockState] | None = None
    """What blocks that keep no keys and values keep, by the stock configuration."""
    longrope: bool = False
    """Whether its class computes a sequence anew, under the long factors, once it outgrows longrope's short ones."""
    embedding_factor: str = ""
    """The config's field that embeddings are multiplied by before the first block; empty for none."""
    ships_code: bool = False
    """Official checkpoints name Python code of their own in config.json (auto_map), which the stock class replaces."""
    always_fused: bool = False
    """Whether checkpoints that others load hold all experts of a layer in one tensor a field, never one by one."""
    reshapes_output: str = ""
    """What a block does to its sparse part's output before it adds it to the stream; empty for nothing."""

    def router_tensors(self, router: Any) -> RouterTensors:
        """Those of a router module."""
        weight, bias, correction = (
            attrgetter(name)(router) if name else None
            for name in (self.router_weight, self.router_bias, self.correction)
        )
        return RouterTensors(weight, bias, None if correction is None else correction.squeeze(0))

    def bias_paths(self, corrected: bool) -> tuple[str, ...]:
        """Paths from the sparse part to a router's biases; ``corrected``: whether this router has a correction."""
        inside = [self.router_bias, *([self.correction] if corrected else [])]
        handed = [self.handed_correction] if corrected and self.handed_correction else []
        return (*(f"{self.router_module}.{name}" for name in inside if name), *handed)


@dataclass(frozen=True, slots=True)
class SkeletonTensor:
    """A tensor beside the routed experts. ``memory``: its name in the module tree.

    ``optional``: tied to another, so it may be absent. ``own_dtype``: kept as wide as it is stored (routers, what the
    stock class may keep in float32); ``float32``: always that, as in the stock class; the others take the model's
    dtype, as the stock class casts them. ``linear``: the weight of a linear layer. ``makes``: in a number format, the
    name in the module tree of the weight that it stands for with others, and ``dtypes`` those it may have.
    """

    memory: str
    shape: tuple[int, ...]
    optional: bool = False
    own_dtype: bool = False
    float32: bool = False
    linear: bool = False
    makes: str = ""
    dtypes: tuple[str, ...] = ()


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
    name on disk, ``experts_memory[i]`` in the module tree. ``fields``: those of blobs, which are the family's where
    experts are stored as they are computed with; ``shapes``: one expert's shape of each.
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
    fused_on_disk: tuple[Mapping[str, str], ...]
    """Of every MoE layer: names on disk of its fused parameters, by their last names in the module tree."""
    routers: tuple[str, ...]
    """Names on disk of the routers' weights, one row an expert of their layer."""
    router_biases: tuple[tuple[str, ...], ...]
    """Names on disk of each router's other tensors, whose last dimension is the experts of their layer."""
    fields: tuple[ExpertField, ...]
    shapes: Mapping[str, tuple[int, ...]]
    skeleton: Mapping[str, SkeletonTensor]
    recomputed: frozenset[str] = frozenset()
    stated_dtype: str = ""
    """What the config calls its weights, as safetensors names it; empty when it says nothing."""
    numbers: NumberFormat | None = None
    """How weights are stored, where the config names a number format."""

    @property
    def plain(self) -> bool:
        """Whether experts are stored as they are computed with."""
        return self.fields == self.spec.fields

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
        Raises InvalidInput (CONFIG_INVALID) where the router's groups would not be equal.
        """
        skeleton = dict(self.skeleton)
        for count in sorted(set(layer_experts)):
            check_groups(self.router, count, self.top_k, "a layer")
        for name, biases, count in zip(self.routers, self.router_biases, layer_experts, strict=True):
            skeleton[name] = replace(skeleton[name], shape=(count, *skeleton[name].shape[1:]))
            for bias in biases:
                skeleton[bias] = replace(skeleton[bias], shape=(*skeleton[bias].shape[:-1], count))
        return replace(self, layer_experts=tuple(layer_experts), skeleton=skeleton)

    @property
    def expert_tensors(self) -> tuple[ExpertTensor, ...]:
        """One expert's tensors as a checkpoint stores them one by one; identities are taken over these."""
        found = []
        for field in self.fields:
            rows, *rest = self.shapes[field.name]
            each = rows // len(field.parts)
            found += [
                ExpertTensor(part, field.name, index * each, (each, *rest)) for index, part in enumerate(field.parts)
            ]
        return tuple(found)

    def expert_name(self, layer: int, expert: int, tensor: ExpertTensor) -> str:
        return f"{self.experts_prefix[layer]}.{expert}.{tensor.suffix}"

    def fused_names(self, layer: int, field: ExpertField) -> tuple[str, ...]:
        """Names that a checkpoint with fused experts may give the field: that of the module tree, or its own."""
        if not field.fused:
            return ()
        memory = f"{self.experts_memory[layer]}.{field.fused}"
        return tuple(dict.fromkeys((memory, self.fused_on_disk[layer][field.fused])))

    def fused_shape(self, layer: int, field: ExpertField) -> tuple[int, ...]:
        """[experts of the layer, *shape] as a fused tensor is stored."""
        shape = self.shapes[field.name]
        return (self.layer_experts[layer], *(reversed(shape) if field.transposed else shape))


def check_groups(router: RouterSpec, experts: int, top_k: int, where: str) -> None:
    """Raise InvalidInput (CONFIG_INVALID) for groups that a layer's experts do not fill."""
    if router.groups == 1 == router.chosen_groups:
        return
    size, left = divmod(experts, router.groups)
    if left or (size < 2 and router.group_score == "top2"):
        raise InvalidInput(
            f"{where}: {experts} experts do not make {router.groups} equal groups (n_group) of at least 2; "
            "correct the checkpoint",
            reason="CONFIG_INVALID",
        )
    if router.chosen_groups > router.groups or top_k > router.chosen_groups * size:
        raise InvalidInput(
            f"{where}: {top_k} experts a token do not lie in {router.chosen_groups} (topk_group) of {router.groups} "
            f"groups of {size}; correct the checkpoint",
            reason="CONFIG_INVALID",
        )


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
