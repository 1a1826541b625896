"""A stock model taken apart: how its forward calls each decoder layer, and what it makes of the last one's output.

Both come from the stock forward itself, with stand-ins for the layers: masks, positions, factors of embeddings and of
logits are what the class makes them, and no layer's weights are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class LayerCall:
    """One decoder layer as the stock forward calls it, but for its input; ``embedded`` [B, T, H] is the first one's."""

    layer: nn.Module
    embedded: Tensor
    arguments: Mapping[str, Any]

    def __call__(self, hidden: Tensor) -> Tensor:
        """The layer's output [B, T, H] for its input [B, T, H]."""
        output = self.layer(hidden, **self.arguments)
        found: Tensor = output[0] if isinstance(output, tuple) else output
        return found


@torch.no_grad()
def layer_calls(model: PreTrainedModel, token_ids: Tensor) -> list[LayerCall]:
    """The calls of all decoder layers for a batch i64[B, T], without a cache. No layer runs."""
    calls: list[LayerCall] = []

    def note(layer: nn.Module, hidden: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        calls.append(LayerCall(layer, hidden, arguments))
        return hidden

    with _standing_in(model, note):
        model.get_decoder()(input_ids=token_ids, use_cache=False)
    return calls


def logits_of(model: PreTrainedModel, output: Tensor) -> Tensor:
    """Logits [N, V] of outputs [N, H] of the last decoder layer; gradients pass through."""
    places = torch.zeros(1, len(output), dtype=torch.long, device=output.device)
    with _standing_in(model, lambda layer, hidden, arguments: output[None]):
        found: Tensor = model(input_ids=places, use_cache=False).logits[0]
    return found


@contextmanager
def _standing_in(
    model: PreTrainedModel, instead: Callable[[nn.Module, Tensor, Mapping[str, Any]], Tensor]
) -> Iterator[None]:
    """Let ``instead(layer, hidden, other arguments)`` answer for every decoder layer."""
    layers = model.get_decoder().layers

    def answer_for(layer: nn.Module) -> Callable[..., Tensor]:
        return lambda hidden_states, **arguments: instead(layer, hidden_states, arguments)

    for layer in layers:
        layer.forward = answer_for(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
