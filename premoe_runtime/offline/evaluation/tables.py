"""Answers by model, calibration seed and prompt as figures with intervals: what reports are made of. Pure.

Shares are in per cent and estimates are ``[value, low, high]``, means over models (training seeds of one thing).
*Retained* is a task's right answers under some experts over those of the same model whole on the same prompts; a mean
over tasks counts every task that all models answer at all (``COUNTED``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from premoe_runtime.formats.arrays import F64
from premoe_runtime.offline.evaluation.exam import Answers
from premoe_runtime.offline.evaluation.statistics import Ratio, estimate

COUNTED = 10.0
"""Per cent of right answers from which a task counts in means of retained accuracy."""
Document = dict[str, Any]
Found = Sequence[Sequence[Answers]]
"""By model and calibration seed (one for what knows none)."""


def judged(found: Found, full: Found, *, counted: bool) -> Document:
    """One task under some experts, beside the full model's; retained only where the task is counted."""
    right = table(found, lambda one: one.right)
    known = {"retained": rounded([retained(found, full)])} if counted else {}
    return {
        "prompts": right.shape[2],
        "accuracy": rounded([alone(100 * right)]),
        **known,
        "perplexity": rounded(
            [Ratio(table(found, lambda one: one.nll), table(full, lambda one: one.tokens))],
            of=lambda nll: np.exp(np.minimum(nll, 700)),
        ),
        "kl": rounded([kl(found)], digits=4),
    }


def retained(found: Found, full: Found) -> Ratio:
    """Per cent of the full model's right answers."""
    return Ratio(100 * table(found, lambda one: one.right), table(full, lambda one: one.right))


def kl(found: Found) -> Ratio:
    """Nats a token, of full to these."""
    return alone(table(found, lambda one: one.kl))


def by_seed(ratios: Sequence[Ratio]) -> list[list[float]]:
    """The mean over tasks, model by model and calibration seed by calibration seed."""
    each = [one.top.sum(axis=2) / one.bottom.sum(axis=2) for one in ratios]
    return [[round(float(value), 2) for value in line] for line in np.mean(each, axis=0)]


def picked(answers: Sequence[Answers]) -> Answers:
    """Prompt n as the n-th answers have it."""
    places = range(len(answers))
    fields = ("right", "nll", "tokens", "kl", "mass")
    return Answers(*(np.array([getattr(answers[n], name)[n] for n in places]) for name in fields))


def table(found: Found, field: Callable[[Answers], Any]) -> F64:
    """f64[M, S, N]."""
    return np.array([[field(one) for one in by_seed] for by_seed in found], np.float64)


def alone(table: F64) -> Ratio:
    """A mean over models, seeds and prompts."""
    return Ratio(table, np.ones_like(table))


def rounded(
    ratios: Iterable[Ratio],
    minus: Sequence[Ratio] = (),
    *,
    of: Callable[[F64], F64] = lambda ratio: ratio,
    digits: int = 2,
) -> list[float]:
    found = estimate(list(ratios), minus, of=of)
    return [round(value, digits) for value in (found.value, found.low, found.high)]
