"""The restricted router in the place of a layer's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter

from premoe_runtime.engines.vllm.coverage import is_grouped
from premoe_runtime.engines.vllm.routing import choose_for, local_slots, retained, slots_of
from premoe_runtime.engines.vllm.rows import TokenRows
from premoe_runtime.formats.manifest import RouterSpec
from premoe_runtime.residency.slot_tables import SlotTables


class SlotRouter(BaseRouter):  # type: ignore[misc]
    """Chooses among what a token's mask row keeps, and names slots instead of experts.

    ``active``: numbers of experts that tokens may use, where a compiled step cannot ask which are in use: every one
    costs a choice of its own. None: the rows say at every step. ``local``: slots of this rank, where its kernel cannot
    tell them from those of others.
    """

    def __init__(
        self,
        stock: Any,
        layer: int,
        spec: RouterSpec,
        tables: SlotTables,
        rows: TokenRows,
        active: Sequence[int] | None,
        local: range | None = None,
    ) -> None:
        super().__init__(top_k=stock.top_k, global_num_experts=stock.global_num_experts, eplb_state=stock.eplb_state)
        self._stock, self._rows, self._active, self._local = stock, rows, active, local
        self._bias: torch.Tensor | None = getattr(stock, "e_score_correction_bias", None)
        # Where vLLM's router does not scale, the layer does.
        self._spec = spec.model_copy(update={"scale": getattr(stock, "routed_scaling_factor", 1.0)})
        self._of_scores = is_grouped(stock)
        self._lut, self._mask, self._sliced = tables.lut[layer], tables.mask[layer], tables.sliced
        self._row_of_token, self._active_of_token, self._mass = rows.of_token, rows.active_of_token, rows.mass

    @property
    def routing_method_type(self) -> Any:
        return self._stock.routing_method_type

    def _compute_routing(
        self,
        hidden_states: torch.Tensor,
        router_logits: torch.Tensor,
        indices_type: torch.dtype | None,
        *,
        input_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        count = router_logits.shape[0]
        rows = self._row_of_token[:count]
        mask, sliced = self._mask[rows], self._sliced[rows, None]
        weights, experts = choose_for(
            self._spec,
            router_logits,
            mask,
            sliced,
            self._rows.widths if self._active is None else self._active,
            self._active_of_token[:count],
            top_k=self.top_k,
            bias=self._bias,
            of_scores=self._of_scores,
        )
        self._mass[:count].add_(retained(self._spec, router_logits, mask))
        slots = slots_of(self._lut, experts)
        if self._local is not None:
            weights, slots = local_slots(self._local, weights, slots)
        return weights, slots.to(indices_type or torch.int32)
