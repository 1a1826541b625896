"""Means over tasks with intervals over training seeds × calibration seeds × test prompts. Pure numpy.

The three are crossed: every prompt is answered by every model under the experts of every calibration text. Each is
resampled, independently of the others, and a cell counts as often as its model, times its calibration seed, times its
prompt was drawn: the pigeonhole bootstrap (A. B. Owen, Annals of Applied Statistics 1(2), 2007), percentile intervals.
A plain bootstrap of S seeds understates their variance by (S - 1) / S, a third at three seeds, so their weights are
stretched about 1 by the root of S / (S - 1) (J. N. K. Rao and C. F. J. Wu, JASA 83, 1988). What is compared is
resampled alike: differences are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from premoe_runtime.formats.arrays import F64

RESAMPLES = 2000
LEVEL = 0.95
_SEEDS, _PROMPTS, _MODELS = 0, 1, 2**32
"""Streams of draws; those of prompts are counted by task."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its interval. Without any spread among prompts and seeds the interval has no width."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, eq=False)
class Ratio:
    """Σ top / Σ bottom of one task, f64[M, S, N] each: M models by S calibration seeds (1 for what knows none) by N
    prompts. Sums are over prompts and seeds; each model has a ratio of its own.
    """

    top: F64
    bottom: F64

    @property
    def value(self) -> float:
        return float(_mean([self], lambda ratio: ratio, None).item())


def estimate(
    ratios: Sequence[Ratio],
    minus: Sequence[Ratio] = (),
    *,
    of: Callable[[F64], F64] = lambda ratio: ratio,
    resamples: int = RESAMPLES,
) -> Estimate:
    """The mean over tasks and models of ``of`` their ratios, less that of ``minus`` (the same tasks and prompts)."""
    draw = _Draw(resamples)
    value = _mean(ratios, of, None) - (_mean(minus, of, None) if minus else 0.0)
    found = _mean(ratios, of, draw) - (_mean(minus, of, draw) if minus else 0.0)
    low, high = np.nanquantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(value.item()), float(low), float(high))


class _Draw:
    """Weights of models, seeds and prompts, f64[resamples, count], each row of mean 1: the same whenever asked for."""

    def __init__(self, resamples: int) -> None:
        self._resamples = resamples

    def models(self, count: int) -> F64:
        return self._stretched(count, _MODELS)

    def seeds(self, count: int) -> F64:
        return self._stretched(count, _SEEDS)

    def prompts(self, count: int, task: int) -> F64:
        return _drawn(self._resamples, count, _PROMPTS + task)

    def _stretched(self, count: int, stream: int) -> F64:
        weights = _drawn(self._resamples, count, stream)
        return np.asarray(1 + (weights - 1) * np.sqrt(count / max(count - 1, 1)))


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
        models, _, count = ratio.top.shape
        prompts = np.ones((1, count)) if draw is None else draw.prompts(count, task)
        bottom = _sum(ratio.bottom, prompts, draw)
        found = of(_sum(ratio.top, prompts, draw) / np.where(bottom > 0, bottom, np.nan))
        each.append(found if draw is None else found * draw.models(models))
    return np.asarray(np.mean(each, axis=(0, 2)))


def _sum(table: F64, prompts: F64, draw: _Draw | None) -> F64:
    """f64[resamples, M]: weighted mean over calibration seeds of the weighted sums over prompts."""
    sums = np.einsum("rn,msn->rms", prompts, table, optimize=True)
    return np.asarray(sums.mean(axis=2) if draw is None else (sums * draw.seeds(table.shape[1])[:, None]).mean(axis=2))
