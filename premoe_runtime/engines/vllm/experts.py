"""Routed experts of vLLM in slots: as many as the plan gives the layer, filled by swaps only."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.fused_moe.oracle.unquantized import convert_to_unquantized_kernel_format
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts

from premoe_runtime.engines.vllm.plan import plan_in
from premoe_runtime.formats.errors import InvalidInput

_BLOCK = re.compile(r"\.(\d+)\.")


@RoutedExperts.register_oot(name="RoutedExperts")
class SlotExperts(RoutedExperts):  # type: ignore[misc]
    """Stands in for vLLM's class in every engine of the process; without a plan it is that class.

    ``layer``: which MoE layer, in the model's order; -1 without a plan. Weights begin as zeros, since kernels may
    read slots that hold nothing.
    """

    def __init__(self, layer_name: str, params_dtype: torch.dtype, moe_config: Any, *args: Any, **kwargs: Any) -> None:
        plan = plan_in(get_current_vllm_config().additional_config)
        slots, layer = 0, -1
        if plan is not None:
            parallel = moe_config.moe_parallel_config
            if parallel.use_ep or parallel.tp_size > 1:
                raise InvalidInput("slots lie on one device; ask for one", reason="ENGINE_ARGUMENT")
            block = _BLOCK.search(layer_name)
            layer = plan.layer_of(int(block[1]) if block else -1)
            slots = plan.slots[layer]
            moe_config.num_local_experts = slots
        super().__init__(layer_name, params_dtype, moe_config, *args, **kwargs)
        self.layer = layer
        if plan is not None:
            self.local_num_experts = slots
            for weight in (self.w13_weight, self.w2_weight):
                weight.data.zero_()

    def pack(self, gate_up: torch.Tensor, down: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One expert as the kernel that runs wants it, by the backend's own code, on a layer of that one expert.

        [2I, H] and [H, I] in the model's dtype. Returns what belongs into a slot of ``w13_weight`` and ``w2_weight``.
        """
        method, one = self.quant_method, nn.Module()
        one.moe_config, one.activation = self.moe_config, self.activation
        w13, w2 = convert_to_unquantized_kernel_format(
            method.unquantized_backend,
            moe_config=self.moe_config,
            layer=one,
            w13_weight=gate_up[None].contiguous(),
            w2_weight=down[None].contiguous(),
        )
        one.w13_weight = nn.Parameter(w13, requires_grad=False)
        one.w2_weight = nn.Parameter(w2, requires_grad=False)
        method.moe_kernel.fused_experts.process_weights_after_loading(one)
        return one.w13_weight.data[0], one.w2_weight.data[0]
