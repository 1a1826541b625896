"""The stock class of a family, built without memory: it says which tensors exist, what they are called, how large.

Names on disk come from transformers' own conversion mapping, read backwards. This module imports torch; whoever only
wants a family's spec does not need it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import PrefixChange, WeightRenaming, rename_source_key
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging

from premoe_runtime.families.spec import FamilySpec, MoeModel, SkeletonTensor, check_groups, context_length
from premoe_runtime.families.stored import experts_converted, stored_fields
from premoe_runtime.formats.errors import InvalidInput, PremoeError
from premoe_runtime.numbers.registry import read_numbers

MAX_BLOCKS = 1000
MAX_EXPERTS = 32_767
LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")
_DTYPE_NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@contextmanager
def refusals(what: str, where: str) -> Iterator[None]:
    """Make one line of whatever transformers raises for files that it cannot use, and nothing of what it logs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _raised_as_refusals(what, where):
            yield


@contextmanager
def _raised_as_refusals(what: str, where: str) -> Iterator[None]:
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    except PremoeError:
        raise
    except Exception as error:
        reason = " ".join(_said(error).split()) or type(error).__name__
        raise InvalidInput(
            f"{where}: transformers refuses the {what}: {reason}; correct the checkpoint",
            reason=f"{what.upper().replace(' ', '_')}_REFUSED",
        ) from error
    finally:
        logging.set_verbosity(before)


def _said(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def stock_config(spec: FamilySpec, data: Mapping[str, Any], where: str) -> PreTrainedConfig:
    """The family's own configuration. Raises InvalidInput (CONFIG_REFUSED, CONFIG_INVALID, ROPE_UNSUPPORTED)."""
    with refusals("config", where):
        config: PreTrainedConfig = CONFIG_MAPPING[spec.name].from_dict(dict(data))
        blocks = config.num_hidden_layers
    if not 1 <= blocks <= MAX_BLOCKS:
        raise InvalidInput(
            f"{where}: num_hidden_layers {blocks} is outside 1 to {MAX_BLOCKS}; correct the checkpoint",
            reason="CONFIG_INVALID",
        )
    kind = (rope_of(config) or {}).get("rope_type")
    if kind in LENGTH_DEPENDENT_ROPE and not (kind == "longrope" and spec.longrope):
        raise InvalidInput(
            f"{where}: rope type {kind} changes with the longest sequence of a batch, so that answers would depend on "
            "their neighbours; it is not supported",
            reason="ROPE_UNSUPPORTED",
        )
    return config


def rope_of(config: PreTrainedConfig) -> Mapping[str, Any] | None:
    """Rotary parameters of a configuration; None where positions are in no other way than by order."""
    found: Mapping[str, Any] | None = getattr(config, "rope_parameters", None)
    return found


def generation_config(data: Mapping[str, Any], where: str) -> GenerationConfig:
    """The checkpoint's sampling defaults. Raises InvalidInput (GENERATION_CONFIG_REFUSED)."""
    with refusals("generation config", where):
        return GenerationConfig.from_dict(dict(data))


def build(config: PreTrainedConfig, where: str) -> PreTrainedModel:
    """The stock causal LM on the meta device: modules and shapes, no bytes. Raises InvalidInput (CONFIG_REFUSED)."""
    with refusals("config", where), torch.device("meta"):
        model: PreTrainedModel = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    return model


def sparse_part(model: PreTrainedModel, spec: FamilySpec, block: int) -> nn.Module | None:
    """The sparse part of a transformer block; None where the block is dense or does not exist."""
    layers = model.get_submodule(spec.layers)
    if not isinstance(layers, nn.ModuleList) or not 0 <= block < len(layers):
        return None
    part = layers[block].get_submodule(spec.sparse)
    return part if hasattr(part, spec.experts_module) and hasattr(part, spec.router_module) else None


def describe(spec: FamilySpec, model: PreTrainedModel, where: str) -> MoeModel:
    """What a checkpoint of this model holds. Raises InvalidInput (CONFIG_INVALID)."""
    config: Any = model.config
    blocks = tuple(block for block in range(config.num_hidden_layers) if sparse_part(model, spec, block) is not None)
    if not blocks:
        raise InvalidInput(f"{where}: no block is a MoE block; there is nothing to prune", reason="CONFIG_INVALID")
    on_disk = _disk_names(model)
    parts = [f"{spec.layers}.{block}.{spec.sparse}" for block in blocks]
    memory = [f"{part}.{spec.experts_module}" for part in parts]
    experts, shapes = _experts(model.get_submodule(memory[0]), spec)
    with refusals("config", where):
        top_k, router = _one_number(config.num_experts_per_tok), spec.router(config)
    if not 1 <= top_k <= experts <= MAX_EXPERTS:
        raise InvalidInput(
            f"{where}: num_experts_per_tok {top_k} and {experts} experts a layer do not go together "
            f"(1 to {MAX_EXPERTS} experts); correct the checkpoint",
            reason="CONFIG_INVALID",
        )
    check_groups(router, experts, top_k, where)
    prefixes = tuple(on_disk(f"{name}.").removesuffix(".") for name in memory)
    numbers, fields = read_numbers(getattr(config, "quantization_config", None), where), spec.fields
    if numbers is not None and experts_converted(spec, numbers, prefixes, where):
        fields, shapes = stored_fields(spec, numbers, shapes)
    return MoeModel(
        spec=spec,
        router=router,
        top_k=top_k,
        layer_experts=(experts,) * len(blocks),
        hidden_size=config.hidden_size,
        context=context_length(config.max_position_embeddings, rope_of(config)),
        num_blocks=config.num_hidden_layers,
        blocks=blocks,
        experts_prefix=prefixes,
        experts_memory=tuple(memory),
        fused_on_disk=tuple(
            {field.fused: on_disk(f"{name}.{field.fused}") for field in fields if field.fused} for name in memory
        ),
        routers=tuple(on_disk(f"{part}.{spec.router_module}.{spec.router_weight}") for part in parts),
        router_biases=tuple(
            tuple(on_disk(f"{part}.{path}") for path in spec.bias_paths(router.bias)) for part in parts
        ),
        fields=fields,
        shapes=shapes,
        skeleton=_skeleton(model, spec, tuple(f"{name}." for name in memory), on_disk),
        recomputed=_recomputed(model),
        stated_dtype=_DTYPE_NAMES.get(str(config.dtype).removeprefix("torch."), ""),
        numbers=numbers,
    )


def _one_number(value: int | Sequence[int]) -> int:
    """A number that some configs list for every layer. Raises ValueError where layers differ."""
    each = {value} if isinstance(value, int) else set(value)
    if len(each) != 1:
        raise ValueError(f"num_experts_per_tok differs between layers: {sorted(each)}")
    return int(each.pop())


def _experts(experts: nn.Module, spec: FamilySpec) -> tuple[int, Mapping[str, tuple[int, ...]]]:
    """Number of experts, and one expert's shape of every field as it lies in a blob."""
    shapes: dict[str, tuple[int, ...]] = {}
    count = 0
    for field in spec.fields:
        count, *shape = experts.get_parameter(field.fused).shape
        shapes[field.name] = tuple(reversed(shape)) if field.transposed else tuple(shape)
    return count, shapes


def _skeleton(
    model: PreTrainedModel, spec: FamilySpec, experts: tuple[str, ...], on_disk: Callable[[str], str]
) -> dict[str, SkeletonTensor]:
    router = re.compile(rf"{re.escape(spec.layers)}\.\d+\.{re.escape(spec.sparse)}\.{re.escape(spec.router_module)}\.")
    wide, strict = (
        re.compile("|".join(rf"(?:^|\.){name}(?:\.|$)" for name in kept or ()) or r"(?!)")
        for kept in (model._keep_in_fp32_modules, model._keep_in_fp32_modules_strict)
    )
    return {
        on_disk(name): SkeletonTensor(
            memory=name,
            shape=tuple(tensor.shape),
            optional=name in model.all_tied_weights_keys,
            own_dtype=bool(router.match(name) or wide.search(name)),
            float32=bool(strict.search(name)) or name.rpartition(".")[2] in spec.float32,
            linear=isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Linear),
        )
        for name, tensor in model.state_dict().items()
        if not name.startswith(experts)
    }


def _disk_names(model: PreTrainedModel) -> Callable[[str], str]:
    """The name that ``save_pretrained`` gives a tensor of the module tree; experts' own conversions aside."""
    conversions = get_model_conversion_mapping(model, add_legacy=False)
    backwards = [one.reverse_transform() for one in reversed(conversions) if not isinstance(one, PrefixChange)]
    renamings = [one for one in backwards if isinstance(one, WeightRenaming)]
    return lambda name: str(rename_source_key(name, renamings, [], reverse=True)[0])


def _recomputed(model: PreTrainedModel) -> frozenset[str]:
    """Last names of modules that hold nothing but buffers which no checkpoint needs (rotary frequencies)."""
    found = set()
    for name, module in model.named_modules():
        buffers = {leaf for leaf, _ in module.named_buffers()}
        if buffers and not module.state_dict() and not next(module.parameters(), None):
            found.add(name.rpartition(".")[2])
    return frozenset(found)


def probed(model: PreTrainedModel, facts: MoeModel) -> Callable[[str], bool]:
    """Whether a probe reads a parameter, by its name in the module tree: embedding, first blocks, first router."""
    spec, first = facts.spec, facts.blocks[0]
    embedding = next(name for name, module in model.named_modules() if module is model.get_input_embeddings())
    whole = (f"{embedding}.", *(f"{spec.layers}.{block}." for block in range(first + 1)))
    sparse = f"{spec.layers}.{first}.{spec.sparse}."
    router = f"{sparse}{spec.router_module}."
    # A tied embedding may be stored under its other name.
    pairs = model.all_tied_weights_keys.items()
    tied = {name for pair in pairs if f"{embedding}.weight" in pair for name in pair}

    def reads(name: str) -> bool:
        if name.startswith(sparse):
            return name.startswith(router)
        return name.startswith(whole) or name in tied

    return reads
