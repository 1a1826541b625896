"""The skeleton of a pack into a model of vLLM. Experts are never read here: slots fill by swaps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig
from vllm.config import get_current_vllm_config
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader

from premoe_runtime.engines.hf.skeleton import read_tensors
from premoe_runtime.engines.vllm.coverage import model_fault
from premoe_runtime.engines.vllm.experts import SlotExperts
from premoe_runtime.engines.vllm.plan import LOAD_FORMAT, plan_in
from premoe_runtime.engines.vllm.sources import source_of
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.residency.source import ExpertSource

CACHE = tuple(f".attn.{one}_{what}" for one in ("k", "v", "q", "prob") for what in ("scale", "zero_point"))
"""Of a quantised cache of keys and values: vLLM makes them for compressed-tensors, and needs none."""


@register_model_loader(LOAD_FORMAT)
class SkeletonLoader(BaseModelLoader):  # type: ignore[misc]
    """vLLM's load format ``premoe``."""

    def download_model(self, model_config: Any) -> None:
        """Nothing is downloaded: files are read one by one as they are needed."""

    def create_model(self, *args: Any, **kwargs: Any) -> Any:
        """Raises InvalidInput where the model asks for what config.json does not say."""
        try:
            return super().create_model(*args, **kwargs)
        except AttributeError as error:
            if not isinstance(error.obj, PreTrainedConfig):
                raise
            raise InvalidInput(
                f"config.json does not say {error.name}, which vLLM's model asks for; use the engine hf",
                reason="ENGINE_UNSUPPORTED",
            ) from error

    def load_weights(self, model: nn.Module, model_config: Any) -> None:
        """Raises InvalidInput without a plan, or where vLLM's model is not the pack's, and what reading raises."""
        plan = plan_in(get_current_vllm_config().additional_config)
        if plan is None:
            raise InvalidInput(
                f"the load format {LOAD_FORMAT} needs a plan of slots in additional_config", reason="PLAN_INVALID"
            )
        if fault := model_fault(type(model).__module__, model_config.hf_config) or _load(model, source_of(plan.pack)):
            raise InvalidInput(f"{fault}; use the engine hf", reason="ENGINE_UNSUPPORTED")


def _load(model: Any, source: ExpertSource) -> str | None:
    """Load the skeleton. Returns in what the model that vLLM made of config.json is another; None: in nothing."""
    try:
        loaded = model.load_weights(skeleton_of(source))
    except (AssertionError, KeyError, ValueError) as error:
        line = str(error).partition("\n")[0].partition(". ")[0][:200]
        return f"vLLM reads config.json as a model that does not take all weights of the pack ({line})"
    slots = {
        f"{name}.{leaf}"
        for name, module in model.named_modules()
        if isinstance(module, SlotExperts)
        for leaf, _ in module.named_parameters()
    }
    wanted = {name for name, _ in model.named_parameters() if not name.endswith(CACHE)}
    if lacking := sorted(wanted - slots - set(loaded)):
        return f"vLLM reads config.json as a model with weights that the pack does not have ({', '.join(lacking[:3])})"
    return None


def skeleton_of(source: ExpertSource) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor beside the routed experts by its name on disk, one file in memory at a time."""
    for file in source.manifest().skeleton:
        if file.path.endswith(".safetensors"):
            for entry, tensor in read_tensors(source.read_file(file.path), file.path):
                yield entry.name, tensor
