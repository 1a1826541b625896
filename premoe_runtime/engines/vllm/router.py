"""The restricted router in the place of a layer's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter

from premoe_runtime.engines.vllm.coverage import is_grouped
from premoe_runtime.engines.vllm.mass import RetainedMass
from premoe_runtime.engines.vllm.routing import choose_for, choose_kept, local_slots, slots_of
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
        mass: RetainedMass,
        active: Sequence[int] | None,
        local: range | None = None,
    ) -> None:
        super().__init__(top_k=stock.top_k, global_num_experts=stock.global_num_experts, eplb_state=stock.eplb_state)
        self._stock, self._rows, self._active, self._local = stock, rows, active, local
        self._bias: torch.Tensor | None = getattr(stock, "e_score_correction_bias", None)
        # Where vLLM's router does not scale, the layer does.
        self._spec = spec.model_copy(update={"scale": getattr(stock, "routed_scaling_factor", 1.0)})
        self._of_scores = is_grouped(stock)
        self._layer, self._mass = layer, mass
        self._lut, self._mask, self._sliced = tables.lut[layer], tables.mask[layer], tables.sliced
        self._row_of_token, self._active_of_token = rows.of_token, rows.active_of_token
        # A compiled step takes the same way whatever rows it is for.
        self._asks_rows = active is None and spec.score != "sparsemixer" and spec.groups == 1

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
        if self._asks_rows and self._rows.have_enough(count):
            weights, slots = self._among_enough(router_logits)
            return self._here(weights, slots, indices_type)
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
        self._mass.add_now(router_logits, mask)
        return self._here(weights, slots_of(self._lut, experts), indices_type)

    def _among_enough(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights and slots: the same numbers in fewer operations, since no token picks what it does not keep. For a
        few tokens one operation costs as much as a third of vLLM's own router.
        """
        rows, mask = self._rows, None
        if rows.breadth.whole:
            self._mass.add_all(len(logits))
        else:
            row = rows.only
            mask = self._mask[self._row_of_token[: len(logits)]] if row is None else self._mask[row : row + 1]
            self._mass.add(self._layer, logits, mask)
        weights, experts = choose_kept(
            self._spec,
            logits,
            mask,
            sliced=bool(rows.breadth.sliced),
            top_k=self.top_k,
            bias=self._bias,
            of_scores=self._of_scores,
        )
        return weights, self._lut.take(experts)

    def _here(
        self, weights: torch.Tensor, slots: torch.Tensor, indices_type: torch.dtype | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self._local is not None:
            weights, slots = local_slots(self._local, weights, slots)
        return weights, slots.to(indices_type or torch.int32)
