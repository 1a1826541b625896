"""Means over tasks with intervals over calibration seeds × test prompts. Pure numpy.

Seeds and prompts are crossed: every prompt is answered under every seed's experts. Both are resampled, independently
of each other, and a cell counts as often as its seed times its prompt was drawn: the pigeonhole bootstrap (A. B. Owen,
Annals of Applied Statistics 1(2), 2007), percentile intervals. A plain bootstrap of S seeds understates their variance
by (S - 1) / S, a third at three seeds, so their weights are stretched about 1 by the root of S / (S - 1) (J. N. K. Rao
and C. F. J. Wu, JASA 83, 1988). What is compared is resampled alike: differences are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from premoe_runtime.formats.arrays import F64

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its interval. Without any spread among prompts and seeds the interval has no width."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, eq=False)
class Ratio:
    """Σ top / Σ bottom of one task, f64[S, N] each: S calibration seeds (1 for what knows none) by N prompts."""

    top: F64
    bottom: F64

    @property
    def value(self) -> float:
        return float(self.top.mean() / self.bottom.mean())


def estimate(
    ratios: Sequence[Ratio],
    minus: Sequence[Ratio] = (),
    *,
    of: Callable[[F64], F64] = lambda ratio: ratio,
    resamples: int = RESAMPLES,
) -> Estimate:
    """The mean over tasks of ``of`` their ratios, less that of ``minus`` (the same tasks and prompts)."""
    draw = _Draw(resamples)
    value = _mean(ratios, of, None) - (_mean(minus, of, None) if minus else 0.0)
    found = _mean(ratios, of, draw) - (_mean(minus, of, draw) if minus else 0.0)
    low, high = np.nanquantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(value.item()), float(low), float(high))


class _Draw:
    """Weights of seeds and prompts, f64[resamples, count], each row of mean 1: the same whenever they are asked for."""

    def __init__(self, resamples: int) -> None:
        self._resamples = resamples

    def seeds(self, count: int) -> F64:
        weights = self._counts(count, 0)
        return np.asarray(1 + (weights - 1) * np.sqrt(count / max(count - 1, 1)))

    def prompts(self, count: int, task: int) -> F64:
        return self._counts(count, 1 + task)

    def _counts(self, count: int, stream: int) -> F64:
        return _drawn(self._resamples, count, stream)


@lru_cache(64)
def _drawn(resamples: int, count: int, stream: int) -> F64:
    """How often each of ``count`` was drawn. Hundreds of estimates ask for the same draws."""
    draw = np.random.default_rng([stream, count])
    found = draw.multinomial(count, np.full(count, 1 / count), resamples).astype(np.float64)
    found.flags.writeable = False
    return np.asarray(found)


def _mean(ratios: Sequence[Ratio], of: Callable[[F64], F64], draw: _Draw | None) -> F64:
    """f64[resamples], or f64[1] of all as they are; nan where a resample has nothing below the line."""
    each = []
    for task, ratio in enumerate(ratios):
        prompts = np.ones((1, ratio.top.shape[1])) if draw is None else draw.prompts(ratio.top.shape[1], task)
        bottom = _sum(ratio.bottom, prompts, draw)
        each.append(of(_sum(ratio.top, prompts, draw) / np.where(bottom > 0, bottom, np.nan)))
    return np.asarray(np.mean(each, axis=0))


def _sum(table: F64, prompts: F64, draw: _Draw | None) -> F64:
    """Weighted mean over seeds of the weighted sums over prompts."""
    seeds = np.ones((1, len(table))) if draw is None else draw.seeds(len(table))
    return np.asarray(((prompts @ table.T) * seeds).mean(axis=1))
