"""What a run sends and when, drawn in advance: no answer can change it. Pure.

Tasks, prompts and times come from generators of their own, so that another rate sends the same prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from premoe_runtime.offline.calibration import Message

Conversation = tuple[Message, ...]
_TIMES = 1
"""Beside the seed, so that times and tasks are drawn apart."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request to come."""

    task: str
    messages: Conversation


def plan_calls(
    prompts: Mapping[str, Sequence[Conversation]], count: int, *, zipf: float = 1.0, seed: int = 0
) -> list[Call]:
    """``count`` calls whose tasks follow Zipf's law in the order given: the k-th is drawn with weight 1 / k**zipf.

    A task's prompts come in random order, each as often as any other, give or take one.
    """
    names = list(prompts)
    weights = 1.0 / np.arange(1, len(names) + 1) ** zipf
    task_seed, *prompt_seeds = np.random.SeedSequence(seed).spawn(1 + len(names))
    chosen = np.random.default_rng(task_seed).choice(len(names), size=count, p=weights / weights.sum())
    calls: list[Call | None] = [None] * count
    for number, (task, prompt_seed) in enumerate(zip(names, prompt_seeds, strict=True)):
        places = np.flatnonzero(chosen == number)
        order = np.random.default_rng(prompt_seed).permutation(len(prompts[task]))
        for turn, place in enumerate(places):
            calls[place] = Call(task, prompts[task][order[turn % len(order)]])
    return [call for call in calls if call is not None]


def arrivals(count: int, *, rate: float, burstiness: float = 1.0, seed: int = 0) -> list[float]:
    """Seconds after the beginning at which each call is due, ``rate`` a second on average.

    The gaps are gamma-distributed with shape ``burstiness``: 1 is a Poisson process, less comes in bursts, more is
    more even.
    """
    gaps = np.random.default_rng((seed, _TIMES)).gamma(burstiness, 1.0 / (rate * burstiness), size=count)
    return [float(moment) for moment in np.cumsum(gaps)]
