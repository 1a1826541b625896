"""How much the answers depend on every expert: a backward pass for activations, layer by layer.

The forward pass keeps the input of every decoder layer. From the last layer to the first, each is then computed again
with a graph of its own, takes the gradient of the answers' margin at its output and hands on that at its input. One
layer's graph and one layer's weights are needed at a time: ``weigh_layer`` takes one layer and one batch, so that a
pass that reads weights layer by layer can call it for all batches of a layer before it goes to the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from premoe_runtime.engines.hf.experts import SlotExperts
from premoe_runtime.engines.hf.model import SlotModel
from premoe_runtime.families.registry import FAMILIES
from premoe_runtime.formats.manifest import RouterSpec
from premoe_runtime.offline.batches import Batch
from premoe_runtime.offline.profile.accumulator import ProfileAccumulator
from premoe_runtime.offline.profile.samples import Sample, targets

LEAST_REST = 0.02
"""Least weight left to the other experts: one with nearly all of it would count without bound."""
HEAD_TOKENS = 1024
"""Answer tokens whose logits are in memory at once."""


@dataclass(slots=True)
class LayerCall:
    """One decoder layer as the forward pass called it: its input [B, T, H] and its other arguments."""

    layer: nn.Module
    hidden: Tensor
    arguments: Mapping[str, Any]


@dataclass(slots=True)
class Trace:
    """What a forward pass leaves for the backward one: the layers' calls, and the last layer's output [B, T, H]."""

    calls: list[LayerCall] = field(default_factory=list)
    output: Tensor | None = None


@dataclass(slots=True)
class _Routed:
    """One MoE layer's routing in its second computation: ids, weights, each expert's output [T, k, H], their sum."""

    layer: int = -1
    ids: Tensor = field(default_factory=lambda: torch.empty(0))
    weights: Tensor = field(default_factory=lambda: torch.empty(0))
    each: Tensor = field(default_factory=lambda: torch.empty(0))
    output: Tensor | None = None


@contextmanager
def traced(model: SlotModel) -> Iterator[Trace]:
    """Keep the decoder layers' inputs of the forward pass that runs inside."""
    trace = Trace()
    layers = model.model.get_decoder().layers

    def before(layer: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        named = dict(named)
        hidden = arguments[0] if arguments else named.pop("hidden_states")
        trace.calls.append(LayerCall(layer, hidden, named))

    def after(_layer: nn.Module, _arguments: Any, output: Any) -> None:
        trace.output = _hidden(output)

    handles = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in layers]
    handles.append(layers[-1].register_forward_hook(after))
    try:
        yield trace
    finally:
        for handle in handles:
            handle.remove()


def weigh(
    model: SlotModel, batch: Batch, samples: Sequence[Sample], trace: Trace, accumulator: ProfileAccumulator
) -> None:
    """Add one batch's impact to ``accumulator``; ``trace`` is that of its forward pass, which ran just before."""
    assert trace.output is not None
    gradient = margin_gradient(model, batch, samples, trace.output)
    while trace.calls:
        gradient = weigh_layer(model, trace.calls.pop(), gradient, batch, accumulator)


def margin_gradient(model: SlotModel, batch: Batch, samples: Sequence[Sample], output: Tensor) -> Tensor:
    """Gradient [B, T, H] of the margin of all predicted tokens at the last layer's ``output`` [B, T, H]."""
    decoder, head = model.model.get_decoder(), model.model.get_output_embeddings()
    norm = decoder.get_submodule(FAMILIES[model.manifest.family].last_norm)
    rows, places, wanted = targets(batch.token_ids, samples)
    gradient = torch.zeros_like(output)
    for start in range(0, len(rows), HEAD_TOKENS):
        part = slice(start, start + HEAD_TOKENS)
        at = rows[part], places[part]
        with torch.enable_grad():
            hidden = output[at].detach().requires_grad_()
            total = margin(head(norm(hidden)).float(), wanted[part])
        gradient[at] = torch.autograd.grad(total, hidden)[0]
    return gradient


def margin(logits: Tensor, wanted: Tensor) -> Tensor:
    """Sum over tokens of the wanted one's log-odds: z_y - log Σ_{v ≠ y} exp z_v; logits f32[N, V], wanted i64[N].

    Not the cross-entropy, which is flat where the model is sure; and the rest is summed itself, because 1 - p of a sure
    token is 0 in 32 bits.
    """
    own = logits.gather(1, wanted[:, None])
    rest = logits.scatter(1, wanted[:, None], -torch.inf).logsumexp(dim=1)
    return (own[:, 0] - rest).sum()


def weigh_layer(
    model: SlotModel, call: LayerCall, gradient: Tensor, batch: Batch, accumulator: ProfileAccumulator
) -> Tensor:
    """Compute one layer again; from the gradient at its output [B, T, H], return that at its input.

    What the layer's experts are worth is added to ``accumulator`` on the way (a dense layer adds nothing).
    """
    with torch.enable_grad(), _apart(model, call.layer) as routed:
        hidden = call.hidden.detach().requires_grad_()
        output = _hidden(call.layer(hidden, **call.arguments))
    if routed.output is None:
        return _gradients(output, gradient, hidden)[0]
    before, at_routed = _gradients(output, gradient, hidden, routed.output)
    valid = batch.valid.flatten()
    weights, each = routed.weights[valid].detach().float(), routed.each[valid].float()
    accumulator.weigh(
        routed.layer,
        routed.ids[valid],
        change(model.manifest.router, weights, each),
        weights * each.norm(dim=-1),
        at_routed.reshape(-1, at_routed.shape[-1])[valid].float().norm(dim=-1),
    )
    return before


def change(router: RouterSpec, weights: Tensor, each: Tensor) -> Tensor:
    """f32[T, k]: norm of the change of the routed output Σ w f if one expert went; weights [T, k], each [T, k, H].

    Where weights are renormalised, the others take over what it had: Δ = g / (1 - g) · (s f - y), with s = Σ w and
    g = w / s. Elsewhere, and where it is alone, only its own part goes.
    """
    moved = each
    if (router.renormalise or router.score == "topk_softmax") and weights.shape[-1] > 1:
        total = weights.sum(dim=-1, keepdim=True)
        moved = total[..., None] * each - (weights[..., None] * each).sum(dim=1, keepdim=True)
        share = weights / total
        weights = share / (1 - share).clamp(min=LEAST_REST)
    found: Tensor = weights * torch.linalg.vector_norm(moved, dim=-1)
    return found


@contextmanager
def _apart(model: SlotModel, layer: nn.Module) -> Iterator[_Routed]:
    """Let the layer's experts answer one by one, and see what they and the router did; same sum, same cost."""
    routed = _Routed()
    experts = next((module for module in layer.modules() if isinstance(module, SlotExperts)), None)
    if experts is None:
        yield routed
        return

    def record(index: int, _logits: Tensor, ids: Tensor, weights: Tensor) -> None:
        routed.layer, routed.ids, routed.weights = index, ids, weights

    def forward(hidden: Tensor, slots: Tensor, weights: Tensor) -> Tensor:
        tokens, ranks = slots.shape
        alone = torch.ones_like(weights).reshape(-1, 1)
        each = SlotExperts.forward(experts, hidden.repeat_interleave(ranks, dim=0), slots.reshape(-1, 1), alone)
        each = each.view(tokens, ranks, -1)
        routed.each = each.detach()
        routed.output = (weights[..., None] * each).sum(dim=1).to(hidden.dtype)
        return routed.output

    model.record(record)
    experts.forward = forward  # type: ignore[method-assign,assignment]
    try:
        yield routed
    finally:
        del experts.forward
        model.record(None)


def _gradients(output: Tensor, gradient: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] = torch.autograd.grad(output, inputs, gradient)
    return found


def _hidden(output: Any) -> Tensor:
    """Decoder layers give their hidden states alone, or first of a tuple."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden
