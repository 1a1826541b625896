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
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from premoe_runtime.engines.hf.model import SlotModel
from premoe_runtime.families.registry import FAMILIES
from premoe_runtime.offline.batches import Batch
from premoe_runtime.offline.profile.accumulator import ProfileAccumulator
from premoe_runtime.offline.profile.samples import Sample, targets
from premoe_runtime.offline.profile.seen import Gradients
from premoe_runtime.offline.profile.watch import experts_of, one_by_one, place_of

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


Objective = Literal["gradient", "loss"]
"""What is taken back through the layers: the answers' margin, or their cross-entropy."""


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
    model: SlotModel,
    batch: Batch,
    samples: Sequence[Sample],
    trace: Trace,
    accumulator: ProfileAccumulator,
    places: Sequence[str] = (),
) -> None:
    """Add how one batch's answers depend on the experts; ``trace`` is that of its forward pass, which ran just before.

    One backward pass for each objective that sums are taken of.
    """
    assert trace.output is not None
    for objective in objectives(accumulator):
        gradient = answers_gradient(model, batch, samples, trace.output, objective)
        for call in reversed(trace.calls):
            gradient = weigh_layer(model, call, gradient, batch, accumulator, objective, places)


def objectives(accumulator: ProfileAccumulator) -> list[Objective]:
    """Those that sums are taken of."""
    return [objective for objective in get_args(Objective) if accumulator.needs(objective)]


def answers_gradient(
    model: SlotModel, batch: Batch, samples: Sequence[Sample], output: Tensor, objective: Objective = "gradient"
) -> Tensor:
    """Gradient [B, T, H] of the objective over all predicted tokens at the last layer's ``output`` [B, T, H]."""
    decoder, head = model.model.get_decoder(), model.model.get_output_embeddings()
    norm = decoder.get_submodule(FAMILIES[model.manifest.family].last_norm)
    total_of = {"gradient": margin, "loss": cross_entropy}[objective]
    rows, places, wanted = targets(batch.token_ids, samples)
    gradient = torch.zeros_like(output)
    for start in range(0, len(rows), HEAD_TOKENS):
        part = slice(start, start + HEAD_TOKENS)
        at = rows[part], places[part]
        with torch.enable_grad():
            hidden = output[at].detach().requires_grad_()
            total = total_of(head(norm(hidden)).float(), wanted[part])
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


def cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    """Sum over tokens of the wanted one's -log p; logits f32[N, V], wanted i64[N]."""
    return nn.functional.cross_entropy(logits, wanted, reduction="sum")


def weigh_layer(
    model: SlotModel,
    call: LayerCall,
    gradient: Tensor,
    batch: Batch,
    accumulator: ProfileAccumulator,
    objective: Objective = "gradient",
    places: Sequence[str] = (),
) -> Tensor:
    """Compute one layer again; from the gradient at its output [B, T, H], return that at its input.

    What the layer's experts are worth is added to ``accumulator`` on the way (a dense layer adds nothing).
    """
    with torch.enable_grad(), _routed(model, call.layer) as routed:
        hidden = call.hidden.detach().requires_grad_()
        output = _hidden(call.layer(hidden, **call.arguments))
    if routed.output is None:
        return _gradients(output, gradient, hidden)[0]
    before, at_routed = _gradients(output, gradient, hidden, routed.output)
    valid = batch.valid.flatten()
    seen = Gradients(
        accumulator.router,
        routed.ids[valid],
        routed.weights[valid].detach(),
        routed.each[valid],
        at_routed.reshape(-1, at_routed.shape[-1])[valid],
    )
    accumulator.add_gradients(routed.layer, seen, objective, place_of(batch, places))
    return before


@dataclass(slots=True)
class _Routed:
    """One MoE layer's routing in its second computation: ids, weights, each expert's output [T, k, H], their sum."""

    layer: int = -1
    ids: Tensor = field(default_factory=lambda: torch.empty(0))
    weights: Tensor = field(default_factory=lambda: torch.empty(0))
    each: Tensor = field(default_factory=lambda: torch.empty(0))
    output: Tensor | None = None

    def record(self, layer: int, _logits: Tensor, ids: Tensor, weights: Tensor) -> None:
        self.layer, self.ids, self.weights = layer, ids, weights

    def told(self, _taken: Tensor, each: Tensor, output: Tensor) -> None:
        self.each, self.output = each.detach(), output


@contextmanager
def _routed(model: SlotModel, layer: nn.Module) -> Iterator[_Routed]:
    """See what the layer's router and experts do."""
    routed, experts = _Routed(), experts_of(layer)
    if experts is None:
        yield routed
        return
    model.record(routed.record)
    try:
        with one_by_one(experts, routed.told):
            yield routed
    finally:
        model.record(None)


def _gradients(output: Tensor, gradient: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] = torch.autograd.grad(output, inputs, gradient)
    return found


def _hidden(output: Any) -> Tensor:
    """Decoder layers give their hidden states alone, or first of a tuple."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden
