"""How much the answers depend on every expert: a backward pass for activations, layer by layer.

The forward pass keeps the input of every decoder layer. From the last layer to the first, each is then computed again
with a graph of its own, takes the gradient of the answers' margin at its output and hands on that at its input. One
layer's graph and one layer's weights are needed at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from premoe_runtime.engines.hf.calls import LayerCall, logits_of
from premoe_runtime.engines.hf.model import SlotModel
from premoe_runtime.offline.batches import Batch
from premoe_runtime.offline.profile.accumulator import PlaceOf, ProfileAccumulator
from premoe_runtime.offline.profile.samples import Sample, targets
from premoe_runtime.offline.profile.seen import Gradients
from premoe_runtime.offline.profile.watch import experts_of, one_by_one

HEAD_TOKENS = 1024
"""Answer tokens whose logits are in memory at once."""


Objective = Literal["gradient", "loss"]
"""What is taken back through the layers: the answers' margin, or their cross-entropy."""


def objectives(accumulator: ProfileAccumulator) -> tuple[Objective, ...]:
    """Those that sums are taken of."""
    return tuple(objective for objective in get_args(Objective) if accumulator.needs(objective))


def answers_gradient(
    model: SlotModel, batch: Batch, samples: Sequence[Sample], output: Tensor, objective: Objective = "gradient"
) -> Tensor:
    """Gradient [B, T, H] of the objective over all predicted tokens at the last layer's ``output`` [B, T, H]."""
    total_of = {"gradient": margin, "loss": cross_entropy}[objective]
    rows, places, wanted = targets(batch.token_ids, samples)
    gradient = torch.zeros_like(output)
    for start in range(0, len(rows), HEAD_TOKENS):
        part = slice(start, start + HEAD_TOKENS)
        at = rows[part], places[part]
        with torch.enable_grad():
            hidden = output[at].detach().requires_grad_()
            total = total_of(logits_of(model.model, hidden).float(), wanted[part])
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
    hidden: Tensor,
    gradient: Tensor,
    batch: Batch,
    accumulator: ProfileAccumulator,
    objective: Objective = "gradient",
    place: PlaceOf = "token {}".format,
) -> Tensor:
    """Compute one layer again from its input ``hidden``; from the gradient at its output, return that at its input.

    All three are [B, T, H].

    What the layer's experts are worth is added to ``accumulator`` on the way (a dense layer adds nothing).
    """
    with torch.enable_grad(), _routed(model, call.layer) as routed:
        hidden = hidden.detach().requires_grad_()
        output = call(hidden)
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
    accumulator.add_gradients(routed.layer, seen, objective, place)
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
