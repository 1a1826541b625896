"""Dirichlet-prior shaping: a loss that gives routers' probabilities the distribution of a chosen Dirichlet.

Each expert's probabilities over a batch of tokens, sorted, are held against the expert's Beta marginal of the target
(arXiv 2510.01185). Rewritten from the formulas; where the paper leaves the prior's concentration open, callers choose.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

_STEPS = 4096
_TAIL = 14.0
"""Where the tables end, in logits beyond the last bend: e^-14, 1e-6, is what the power laws outside them neglect."""


@dataclass(frozen=True, slots=True, eq=False)
class Marginal:
    """The distribution of one share of a symmetric Dirichlet over n shares: Beta(concentration, (n - 1) times it).

    A concentration well below 1 wants few large probabilities a token, 1 no shape at all, above 1 all alike; the mean
    is 1 / n, so that experts are used equally. ``table`` f64[steps + 1]: its CDF over logits from ``low`` to ``high``.
    """

    first: float
    second: float
    low: float
    high: float
    table: Tensor

    @classmethod
    def of(cls, concentration: float, count: int) -> Marginal:
        """Raises ValueError: a concentration that is not above 0, fewer than 2 shares."""
        if not (concentration > 0 and math.isfinite(concentration)) or count < 2:
            raise ValueError(f"no Dirichlet of {count} shares has concentration {concentration}")
        return _marginal(concentration, concentration * (count - 1))

    def cdf(self, logit: Tensor) -> Tensor:
        """P(share <= sigmoid(logit)), differentiable.

        torch has no incomplete beta function, and its derivative is all that is needed of it: over logits the density
        is smooth and falls like powers at both ends, so that a table with lines between its points does (to 1e-4).
        """
        table = self.table.to(logit.device, logit.dtype)
        place = (logit.clamp(self.low, self.high) - self.low) * (_STEPS / (self.high - self.low))
        index = place.detach().long().clamp(max=_STEPS - 1)
        between = table[index] + (place - index) * (table[index + 1] - table[index])
        below = table[0] * (self.first * (logit - self.low).clamp(max=0)).exp()
        above = 1 - (1 - table[-1]) * (-self.second * (logit - self.high).clamp(min=0)).exp()
        return torch.where(logit < self.low, below, torch.where(logit > self.high, above, between))


@lru_cache(maxsize=16)
def _marginal(first: float, second: float) -> Marginal:
    """The table: over a logit t with p = sigmoid(t), dF/dt = p^a (1 - p)^b / B(a, b)."""
    bend = math.log(max(first / second, second / first, 1.0)) + math.log1p(first + second)
    low, high = -_TAIL - bend, _TAIL + bend
    t = torch.linspace(low, high, _STEPS + 1, dtype=torch.float64)
    norm = math.lgamma(first) + math.lgamma(second) - math.lgamma(first + second)
    density = (first * F.logsigmoid(t) + second * F.logsigmoid(-t) - norm).exp()
    start, end = float(density[0]) / first, float(density[-1]) / second  # what lies beyond, by the power laws
    inside = torch.cumulative_trapezoid(density, t)
    inside = inside * ((1 - start - end) / inside[-1])  # of a sharp peak the trapezoids miss a little
    table = torch.cat([torch.zeros(1, dtype=torch.float64), inside]) + start
    return Marginal(first, second, low, high, table)


def shaping_loss(logits: Tensor, concentration: float) -> Tensor:
    """How far a layer's routing is from a symmetric Dirichlet: mean squared distance of CDFs, 0 to 1/3.

    logits [T, n]: the router's, whose softmax is the share of each expert. For expert i with its T shares sorted,
    (F(p_(j)) - (j - 1/2) / T)² is averaged over j and i; gradients flow through F, whose order is that of the shares.
    """
    tokens, experts = logits.shape
    share = logits.float().log_softmax(-1)
    odds = share - torch.log1p(-share.exp().clamp(max=1 - 1e-6))
    found = Marginal.of(concentration, experts).cdf(odds).sort(dim=0).values
    wanted = (torch.arange(tokens, device=logits.device, dtype=found.dtype) + 0.5) / tokens
    return (found - wanted[:, None]).square().mean()
