"""What a profile sees of one MoE layer in one batch, padding left out: the values that sums are taken from.

T tokens, k ranks, n experts of the layer, H the hidden size. Values that several sums share are worked out once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from premoe_runtime.formats.manifest import RouterSpec
from premoe_runtime.offline.profile.state import P_BINS

LEAST_REST = 0.02
"""Least weight left to the other experts: one with nearly all of it would count without bound."""
OUTLIER = 3.0
"""Root mean squares of a vector beyond which an entry is an outlier."""


@dataclass(eq=False)
class Routed:
    """What a router did: raw logits f64[T, n], the experts it chose i64[T, k], their combine weights f64[T, k]."""

    router: RouterSpec
    logits: Tensor
    ids: Tensor
    weights: Tensor
    token_ids: Tensor | None = None

    @cached_property
    def ones(self) -> Tensor:
        return torch.ones_like(self.ids)

    @cached_property
    def chosen(self) -> Tensor:
        """f64[T, k]: logits of the experts chosen."""
        return self.logits.gather(1, self.ids)

    @cached_property
    def p(self) -> Tensor:
        """f64[T, k]: softmax over the experts chosen alone (PreMoE v3, eq. 2)."""
        return torch.softmax(self.chosen, dim=-1)

    @cached_property
    def bins(self) -> Tensor:
        """i64[T, k]: the bin of p."""
        return (self.p * P_BINS).long().clamp_(max=P_BINS - 1)

    @cached_property
    def _best(self) -> tuple[Tensor, Tensor]:
        top, best = self.logits.max(dim=-1, keepdim=True)
        return top, best

    @property
    def top(self) -> Tensor:
        """f64[T, 1]: the largest logit."""
        return self._best[0]

    @property
    def best(self) -> Tensor:
        """i64[T, 1]: whose it is."""
        return self._best[1]

    @cached_property
    def probabilities(self) -> Tensor:
        """f64[T, n]: the router's scores over all experts, as shares."""
        if self.router.score == "sigmoid":
            scores = torch.sigmoid(self.logits)
            return scores / scores.sum(dim=-1, keepdim=True)
        return torch.softmax(self.logits, dim=-1)


@dataclass(eq=False)
class Outputs:
    """What the chosen experts gave: each [T, k, H], unweighted, for inputs [T, H]."""

    ids: Tensor
    weights: Tensor
    each: Tensor
    inputs: Tensor
    before: Tensor | None = None
    """[T, H]: the layer's output without their weighted sum ``y``."""
    after: Tensor | None = None
    """[T, H]: the layer's output."""

    @cached_property
    def norms(self) -> Tensor:
        """f64[T, k]."""
        return norms(self.each)

    @cached_property
    def vectors(self) -> Tensor:
        """f64[T, k, H]."""
        return self.each.double()

    @cached_property
    def directions(self) -> Tensor:
        """f64[T, k, H]: the input's direction, for each expert that it went to."""
        return torch.nn.functional.normalize(self.inputs.double(), dim=-1)[:, None].expand(self.each.shape)

    @cached_property
    def outliers(self) -> Tensor:
        """i64[T, k]: entries far from 0, measured by the vector itself."""
        return outliers(self.each)

    @cached_property
    def turn(self) -> Tensor:
        """f64[T]: 1 - cos of the layer's output before and after the routed experts, at least 0."""
        assert self.before is not None, "the layer has not answered yet"
        assert self.after is not None, "the layer has not answered yet"
        return (1 - torch.cosine_similarity(self.before.double(), self.after.double(), dim=-1)).clamp_min(0.0)


@dataclass(eq=False)
class Gradients:
    """How the answers' objective depends on the routed output: its gradient there [T, H], and what made it up."""

    router: RouterSpec
    ids: Tensor
    weights: Tensor
    each: Tensor
    gradient: Tensor

    @cached_property
    def sensitivity(self) -> Tensor:
        """f64[T]: norm of the gradient at the routed output."""
        return norms(self.gradient)

    @cached_property
    def norms(self) -> Tensor:
        """f64[T, k]: of the experts' outputs."""
        return norms(self.each)

    @cached_property
    def change(self) -> Tensor:
        """f64[T, k]: see ``change``."""
        return change(self.router, self.weights.float(), self.each.float()).double()

    @cached_property
    def shares(self) -> Tensor:
        """f64[T, k]: combine weights, as shares of the token's where the router renormalises them."""
        weights = self.weights.double()
        return weights / weights.sum(dim=-1, keepdim=True) if shares_weight(self.router) else weights

    @cached_property
    def along(self) -> Tensor:
        """f64[T, k]: dot product of the gradient and each output."""
        return torch.einsum("th,tkh->tk", self.gradient.float(), self.each.float()).double()

    @cached_property
    def vectors(self) -> Tensor:
        """f64[T, k, H]: gradients at the experts' own outputs."""
        return self.weights.double()[..., None] * self.gradient.double()[:, None]

    @cached_property
    def outliers(self) -> Tensor:
        """i64[T, k]: entries far from 0 in the gradient, which weights only scale."""
        return outliers(self.gradient)[:, None].expand(self.ids.shape)


@dataclass(eq=False)
class Weights:
    """One layer's weights: matrices [n, …, …] of its experts, and the router's rows [n, H]."""

    matrices: tuple[Tensor, ...]
    router: Tensor

    @cached_property
    def router_norm(self) -> Tensor:
        return norms(self.router)

    @cached_property
    def _products(self) -> Tensor:
        """f64[n, n]: dot products of the experts' weights; one matrix in 64 bits at a time."""
        return sum(
            (flat @ flat.T for flat in (matrix.flatten(1).double() for matrix in self.matrices)),
            torch.zeros((), dtype=torch.float64, device=self.router.device),
        )

    @cached_property
    def weight_norm(self) -> Tensor:
        return self._products.diagonal().sqrt()

    @cached_property
    def similarity(self) -> Tensor:
        """f64[n]: sum of cosines with the other experts."""
        norm = self.weight_norm.clamp_min(torch.finfo(torch.float64).tiny)
        cosines = self._products / norm[:, None] / norm
        return cosines.sum(dim=-1) - cosines.diagonal()

    @cached_property
    def stable_rank(self) -> Tensor:
        """f64[n]: squared norm over the largest squared singular value, mean over matrices; at least 1."""
        ranks = []
        for matrix in self.matrices:
            total = matrix.float().square().sum(dim=(-2, -1), dtype=torch.float64)
            largest = torch.linalg.matrix_norm(matrix.float(), ord=2).double().square()
            ranks.append(total / largest.clamp_min(torch.finfo(torch.float64).tiny))
        return torch.stack(ranks).mean(dim=0)


def norms(vectors: Tensor) -> Tensor:
    """f64[…] of vectors [… , H]."""
    found: Tensor = torch.linalg.vector_norm(vectors.float(), dim=-1)
    return found.double()


def outliers(vectors: Tensor) -> Tensor:
    """i64[…]: entries of vectors [… , H] beyond ``OUTLIER`` root mean squares."""
    vectors = vectors.float()
    limit = OUTLIER * vectors.square().mean(dim=-1, keepdim=True).sqrt()
    return (vectors.abs() > limit).sum(dim=-1)


def shares_weight(router: RouterSpec) -> bool:
    """Whether a token's weights are divided by their sum, so that others take over what one had."""
    return router.renormalise or router.score == "topk_softmax"


def change(router: RouterSpec, weights: Tensor, each: Tensor) -> Tensor:
    """f32[T, k]: norm of the change of the routed output Σ w f if one expert went; weights [T, k], each [T, k, H].

    Where weights are renormalised, the others take over what it had: Δ = g / (1 - g) · (s f - y), with s = Σ w and
    g = w / s. Elsewhere, and where it is alone, only its own part goes.
    """
    moved = each
    if shares_weight(router) and weights.shape[-1] > 1:
        total = weights.sum(dim=-1, keepdim=True)
        moved = total[..., None] * each - (weights[..., None] * each).sum(dim=1, keepdim=True)
        share = weights / total
        weights = share / (1 - share).clamp(min=LEAST_REST)
    found: Tensor = weights * torch.linalg.vector_norm(moved, dim=-1)
    return found
