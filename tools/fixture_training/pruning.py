"""Expert scores from calibration documents, and the experts that a score keeps."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fixture_training.stock import Encoded, Stock, observed


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of every expert (layers x experts) on one task."""

    peu: Tensor
    """Predicted expert utility: clipped logit of confident selections, per token."""
    seer: Tensor
    """SEER-soft: sum of routing weights, per token."""
    count: Tensor
    """Selections, per token."""

    def kept(self, number: int, score: str) -> Tensor:
        """The mask of the `number` best experts of each layer; ties go to SEER-soft, then count, then the lower id."""
        first = self.peu if score == "peu" else self.seer
        mask = torch.zeros_like(first, dtype=torch.bool)
        ids = np.arange(first.shape[1])
        for layer in range(first.shape[0]):
            keys = (ids, -self.count[layer].numpy(), -self.seer[layer].numpy(), -first[layer].numpy())
            mask[layer, torch.from_numpy(np.lexsort(keys)[:number].copy())] = True
        return mask

    def shared(self, number: int, least: int) -> Tensor:
        """As many experts in all, but the layers share them by SEER-soft; each keeps at least `least`.

        The first layer routes by word and needs many experts, the later ones route by task and need few.
        """
        mask = self.kept(least, "seer")
        free = number * mask.shape[0] - int(mask.sum())
        places = self.seer.masked_fill(mask, -1).flatten().topk(free).indices
        flat = mask.flatten()
        flat[places] = True
        return flat.view_as(mask)


def pooled(scores: list[Scores]) -> Scores:
    """The mean over tasks, each with equal weight."""
    return Scores(
        torch.stack([each.peu for each in scores]).mean(0),
        torch.stack([each.seer for each in scores]).mean(0),
        torch.stack([each.count for each in scores]).mean(0),
    )


def random_mask(layers: int, experts: int, number: int, seed: int) -> Tensor:
    """As many experts, drawn blindly."""
    draw = torch.Generator().manual_seed(seed)
    places = torch.rand(layers, experts, generator=draw).topk(number, -1).indices
    return torch.zeros(layers, experts, dtype=torch.bool).scatter_(1, places, True)


def score(stock: Stock, documents: list[Encoded]) -> Scores:
    """Scores over all tokens of the documents, prompt and answer alike."""
    collected: list[list[Tensor]] = [[] for _ in range(stock.layers)]
    with observed(stock) as logits:
        for places, ids, _ in stock.forward(documents):
            real = torch.zeros(ids.shape, dtype=torch.bool)
            for row, place in enumerate(places):
                real[row, : len(documents[place].ids)] = True
            for layer in range(stock.layers):
                collected[layer].append(logits[layer][real.flatten()].clone())
    layers = [_score_layer(torch.cat(parts), stock.chosen) for parts in collected]
    return Scores(*(torch.stack([layer[i] for layer in layers]) for i in range(3)))


def _score_layer(logits: Tensor, chosen: int) -> tuple[Tensor, Tensor, Tensor]:
    best, places = logits.topk(chosen, -1)
    weights = best.softmax(-1)
    confident = weights >= weights.max(-1).values.mean()
    utility = torch.maximum(best, best.sigmoid()) * confident
    tokens, experts = logits.shape

    def add_up(values: Tensor) -> Tensor:
        return torch.zeros(experts).scatter_add_(0, places.flatten(), values.flatten()) / tokens

    return add_up(utility), add_up(weights), add_up(torch.ones_like(weights))
