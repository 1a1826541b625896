"""Scores per (layer, expert) from a profile's sums. Pure numpy."""

from __future__ import annotations

import blake3
import numpy as np

from premoe_runtime.formats.arrays import F64, I64, Mask
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.pattern import Metric
from premoe_runtime.offline.profile.state import P_BINS, ProfileState

GRADIENT_METRICS: tuple[Metric, ...] = ("impact", "norm")


def scores(state: ProfileState, metric: Metric, *, seed: int = 0) -> F64:
    """f64[L, E] of one metric; ``seed`` matters for "random" only. Raises InvalidInput for a profile of no tokens."""
    if not state.tokens.all():
        raise InvalidInput("the profile has seen no tokens, so it ranks nothing", reason="PROFILE_EMPTY")
    if metric in GRADIENT_METRICS and not state.has_impact:
        raise InvalidInput(
            f"the profile has no gradients, which the metric {metric!r} needs: profile the task again (without "
            "--router-only), or rank by peu",
            reason="PROFILE_WITHOUT_IMPACT",
        )
    tokens = state.tokens[:, None].astype(np.float64)
    if metric == "impact":
        return state.impact / tokens
    if metric == "norm":
        return state.norm / tokens
    if metric == "peu":
        return _peu(state)
    if metric == "seer":
        return state.soft / tokens
    if metric == "tcess":
        return state.top_logit / tokens
    if metric == "counts":
        return counts(state) / tokens
    return random_scores(state.shape, seed)


def counts(state: ProfileState) -> I64:
    """i64[L, E]: tokens that chose the expert."""
    return np.asarray(state.chosen.sum(axis=-1))


def threshold_bins(state: ProfileState) -> I64:
    """i64[L]: r_l, the mean of the tokens' largest p (PreMoE v3, eq. 4), as the nearest bin edge (of 256).

    The last bin always passes: it holds p = 1, which is all there is at top-1.
    """
    mean = state.max_p / np.maximum(state.tokens, 1)
    return np.clip(np.rint(mean * P_BINS), 0, P_BINS - 1).astype(np.int64)


def retained_mass(state: ProfileState, kept: Mask) -> float:
    """Share of the full router's probability that falls on ``kept`` bool[L, E]: mean over tokens and layers."""
    total = state.mass.sum(axis=1)
    return float((np.where(kept, state.mass, 0.0).sum(axis=1) / total).mean())


def _peu(state: ProfileState) -> F64:
    edges = threshold_bins(state)
    passed = np.arange(P_BINS)[None, :] >= edges[:, None]
    total: F64 = np.where(passed[:, None, :], state.utility, 0.0).sum(axis=-1)
    return total / state.tokens[:, None]


def random_scores(shape: tuple[int, int], seed: int) -> F64:
    """f64[L, E] in [0, 1) from a seed."""
    # Hashed rather than drawn: the ranking is the same for every version of numpy.
    names = (f"{seed}/{layer}/{expert}" for layer in range(shape[0]) for expert in range(shape[1]))
    values = [int.from_bytes(blake3.blake3(name.encode()).digest(8), "little") / 2**64 for name in names]
    return np.array(values).reshape(shape)
