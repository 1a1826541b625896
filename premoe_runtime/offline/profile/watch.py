"""Watching layers while they run: what routers choose and what experts give goes into an accumulator.

Works for a forward pass of the whole model and for single layers alike. Experts answer one by one where their outputs
are wanted, which gives the same sums, bit for bit, and needs no second look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from premoe_runtime.engines.hf.experts import SlotExperts
from premoe_runtime.engines.hf.model import SlotModel
from premoe_runtime.engines.hf.router import RestrictedRouter
from premoe_runtime.engines.hf.step_state import Recorder
from premoe_runtime.offline.batches import Batch
from premoe_runtime.offline.profile.accumulator import PlaceOf, ProfileAccumulator
from premoe_runtime.offline.profile.seen import Outputs, Weights

Answer = Callable[[Tensor, Tensor, Tensor], None]
"""Told what an experts module took [T, H], what each chosen expert gave [T, k, H] and their weighted sum [T, H]."""


def nowhere(layer: int, logits: Tensor, ids: Tensor, weights: Tensor) -> None:
    """A recorder that records nothing."""


@contextmanager
def watched(
    model: SlotModel,
    layer: nn.Module,
    batch: Batch,
    accumulator: ProfileAccumulator,
    place: PlaceOf,
    also: Recorder = nowhere,
) -> Iterator[None]:
    """Add what a decoder layer does that runs inside on ``batch``; ``also`` is told of its router, padding included."""
    watch = _Watch(model, batch, accumulator, place, also)
    experts = experts_of(layer)
    with ExitStack() as stack:
        model.record(watch.routed)
        stack.callback(model.record, None)
        if experts is not None and accumulator.needs("outputs", "stream", "weights"):
            stack.enter_context(watch.experts(layer, experts))
        yield


def experts_of(layer: nn.Module) -> SlotExperts | None:
    """The routed experts of a decoder layer; None where it is dense."""
    return next((module for module in layer.modules() if isinstance(module, SlotExperts)), None)


@contextmanager
def one_by_one(experts: SlotExperts, told: Answer) -> Iterator[None]:
    """Let experts answer one by one, and tell of it; the same sum at the same cost."""

    def forward(hidden: Tensor, slots: Tensor, weights: Tensor) -> Tensor:
        tokens, ranks = slots.shape
        alone = torch.ones_like(weights).reshape(-1, 1)
        each = SlotExperts.forward(experts, hidden.repeat_interleave(ranks, dim=0), slots.reshape(-1, 1), alone)
        each = each.view(tokens, ranks, -1)
        output = (weights[..., None] * each).sum(dim=1).to(hidden.dtype)
        told(hidden, each, output)
        return output

    experts.forward = forward  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        del experts.forward


class _Watch:
    """One batch's layers, one after another: a router speaks before the experts that it chose."""

    def __init__(
        self, model: SlotModel, batch: Batch, accumulator: ProfileAccumulator, place: PlaceOf, also: Recorder
    ) -> None:
        self._model, self._accumulator, self._place, self._also = model, accumulator, place, also
        # A mask copies what it selects, and outputs of experts are the largest tensors there are.
        self._valid = slice(None) if bool(batch.valid.all()) else batch.valid.flatten()
        self._token_ids = batch.token_ids[batch.valid]
        self._layer = -1
        self._ids = self._weights = torch.empty(0)
        self._waiting: tuple[Outputs, Tensor] | None = None

    def routed(self, layer: int, logits: Tensor, ids: Tensor, weights: Tensor) -> None:
        valid = self._valid
        self._layer, self._ids, self._weights = layer, ids[valid], weights[valid]
        self._accumulator.add(layer, logits[valid], self._ids, self._weights, self._token_ids, self._place)
        self._also(layer, logits, ids, weights)

    @contextmanager
    def experts(self, layer: nn.Module, experts: SlotExperts) -> Iterator[None]:
        """Watch one layer's experts, and what the layer makes of their sum."""
        with ExitStack() as stack:
            stack.enter_context(
                one_by_one(experts, lambda taken, each, total: self._answered(layer, experts, taken, each, total))
            )
            if self._accumulator.needs("stream"):
                handle = layer.register_forward_hook(lambda _module, _arguments, output: self._left(output))
                stack.callback(handle.remove)
            yield

    def _answered(self, layer: nn.Module, experts: SlotExperts, taken: Tensor, each: Tensor, total: Tensor) -> None:
        self._accumulator.add_weights(self._layer, lambda: weights_of(self._model, self._layer, layer, experts))
        seen = Outputs(self._ids, self._weights, each.detach()[self._valid], taken.detach()[self._valid])
        if self._accumulator.needs("stream"):
            self._waiting = seen, total.detach()[self._valid]
        else:
            self._accumulator.add_outputs(self._layer, seen, self._place)

    def _left(self, output: Any) -> None:
        assert self._waiting is not None, "its experts answer before a layer does"
        seen, total = self._waiting
        hidden = output[0] if isinstance(output, tuple) else output
        after = hidden.detach().reshape(-1, hidden.shape[-1])[self._valid].float()
        self._accumulator.add_outputs(
            self._layer, replace(seen, before=after - total.float(), after=after), self._place
        )
        self._waiting = None


def weights_of(model: SlotModel, index: int, layer: nn.Module, experts: SlotExperts) -> Weights:
    """The weights of MoE layer ``index``, experts in their order, whatever slots they lie in."""
    slots = model.store.lut[index, : model.manifest.layer_experts[index]]
    router = next(module for module in layer.modules() if isinstance(module, RestrictedRouter))
    gate, up = experts.gate_up_proj[slots].chunk(2, dim=1)
    return Weights((gate, up, experts.down_proj[slots]), router.family.router_tensors(router).weight)


def place_of(batch: Batch, places: Sequence[str]) -> PlaceOf:
    """Names the prompt of the token at an index among those that are no padding."""

    def place(token: int) -> str:
        row = int(batch.valid.nonzero()[token, 0])
        return places[row] if places else f"prompt {batch.indices[row]}"

    return place
