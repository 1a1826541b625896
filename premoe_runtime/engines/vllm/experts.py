"""Routed experts of vLLM in slots: as many as the plan gives the layer, filled by swaps only."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import torch
from vllm.config import get_current_vllm_config, set_current_vllm_config
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.models.gpt_oss import GptOssRoutedExperts
from vllm.utils.torch_utils import set_default_torch_dtype

from premoe_runtime.engines.vllm.plan import plan_in
from premoe_runtime.engines.vllm.routing import slot_map
from premoe_runtime.engines.vllm.shards import Names
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.residency.ranks import share

_BLOCK = re.compile(r"\.(\d+)\.")


@RoutedExperts.register_oot(name="RoutedExperts")
class SlotExperts(RoutedExperts):  # type: ignore[misc]
    """Stands in for vLLM's class in every engine of the process; without a plan it is that class.

    ``layer``: which MoE layer, in the model's order; -1 without a plan. ``share``: slots of it that lie here, where
    several ranks have some. Parameters begin as zeros, since kernels may read slots that hold nothing.
    """

    def __init__(self, layer_name: str, params_dtype: torch.dtype, moe_config: Any, *args: Any, **kwargs: Any) -> None:
        self._config = get_current_vllm_config()
        plan = plan_in(self._config.additional_config)
        self.layer, self.share = -1, range(0)
        if plan is not None:
            parallel = moe_config.moe_parallel_config
            if parallel.tp_size > 1 or parallel.dp_size > 1 or parallel.is_sequence_parallel:
                raise InvalidInput(
                    "an expert lies whole on one device; ask for enable_expert_parallel with tensor_parallel_size, and "
                    "for no other parallelism",
                    reason="ENGINE_ARGUMENT",
                )
            block = _BLOCK.search(layer_name)
            layer = plan.layer_of(int(block[1]) if block else -1)
            here = share(plan.slots[layer], parallel.ep_size, parallel.ep_rank)
            moe_config.num_local_experts = len(here)
        super().__init__(layer_name, params_dtype, moe_config, *args, **kwargs)
        if plan is not None:
            self.layer, self.share, self.local_num_experts = layer, here, len(here)
            if parallel.ep_size > 1:
                self._expert_map = slot_map(here, self.global_num_experts)
            for parameter in self.slot_parameters().values():
                parameter.zero_()

    def _map_global_expert_id_to_local_expert_id(self, expert_id: int) -> int:
        # Experts come through ``pack`` only, into a layer of one.
        return expert_id if self.share else super()._map_global_expert_id_to_local_expert_id(expert_id)

    def slot_parameters(self) -> dict[str, torch.Tensor]:
        """All that the kernel reads of experts, by vLLM's names, an expert each along the first dimension."""
        return {
            name: parameter.data
            for name, parameter in self.named_parameters(recurse=False)
            if name.startswith(("w13_", "w2_"))
        }

    def pack(self, fields: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """One expert as the kernel that runs wants it, by vLLM's own code, on a layer of that one expert.

        ``fields``: of a blob, as the pack has them. Returns what belongs into a slot of each of ``slot_parameters``.
        """
        names = Names(
            gate=self.ckpt_gate_proj_name,
            up=self.ckpt_up_proj_name,
            down=self.ckpt_down_proj_name,
            gpt_oss=isinstance(self, GptOssRoutedExperts),
        )
        dtype = self._config.model_config.dtype
        with set_current_vllm_config(self._config), set_default_torch_dtype(dtype), torch.no_grad():
            one = self._of_one()
            for field, tensor in fields.items():
                for shard in names.shards(field, tensor):
                    parameter = getattr(one, shard.parameter)
                    one.weight_loader(parameter, shard.tensor, f"experts.0.{shard.parameter}", shard.part, 0)
            one.quant_method.process_weights_after_loading(one)
        return {name: parameter[0] for name, parameter in one.slot_parameters().items()}

    def _of_one(self) -> SlotExperts:
        """The same layer before weights were loaded, with a single expert, of zeros."""
        one = copy.copy(self)
        one._parameters, one._modules = {}, {}
        one.moe_config = copy.copy(self.moe_config)
        one.moe_config.num_local_experts = one.local_num_experts = 1
        one.quant_method = copy.copy(self.quant_method)
        one.quant_method.moe, one.quant_method.moe_kernel = one.moe_config, None
        one.quant_method.create_weights(
            layer=one,
            num_experts=1,
            hidden_size=one.hidden_size,
            unpadded_hidden_size=one.moe_config.hidden_dim_unpadded,
            intermediate_size_per_partition=one.moe_config.intermediate_size_per_partition,
            params_dtype=one.params_dtype,
            weight_loader=one.weight_loader,
            global_num_experts=one.global_num_experts,
        )
        for parameter in one.slot_parameters().values():
            parameter.zero_()
        return one


@GptOssRoutedExperts.register_oot(name="GptOssRoutedExperts")
class GptOssSlotExperts(SlotExperts, GptOssRoutedExperts):  # type: ignore[misc]
    """GPT-OSS's class, which loads experts in its own way."""


# compressed-tensors finds the format of a layer by the name of its class.
SlotExperts.__name__, GptOssSlotExperts.__name__ = RoutedExperts.__name__, GptOssRoutedExperts.__name__
