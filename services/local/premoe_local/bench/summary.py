"""Figures out of outcomes. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from premoe_local.bench.outcome import Outcome

Metric = Literal["ttft", "itl", "tpot", "e2e"]
METRICS: tuple[Metric, ...] = get_args(Metric)
Promised = Literal["ttft", "tpot", "e2e"]
"""What a request can be held to."""
PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True)
class Distribution:
    """Milliseconds."""

    count: int
    mean: float
    percentiles: tuple[float, ...]
    """At `PERCENTILES`, between neighbours where none is exact."""
    largest: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Distribution | None:
        """None where nothing was measured."""
        if not seconds:
            return None
        values = np.asarray(seconds) * 1e3
        found = tuple(float(value) for value in np.percentile(values, PERCENTILES))
        return cls(len(values), float(values.mean()), found, float(values.max()))


@dataclass(frozen=True, slots=True)
class ErrorCount:
    """One kind of failure, and the first of it."""

    count: int
    first: str


@dataclass(frozen=True, slots=True)
class Summary:
    """All figures of a run; rates are per second of it."""

    seconds: float
    ok: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    latency: dict[Metric, Distribution | None]
    good: int | None
    """Requests that kept every promise; None without promises."""
    errors: dict[str, ErrorCount]
    tasks: dict[str, dict[Metric, Distribution | None]]
    """The commonest first."""
    late: Distribution | None
    """How long after they were due calls were sent: this program's own delay."""

    def rate(self, count: float) -> float:
        return count / self.seconds if self.seconds > 0 else 0.0


def summarise(outcomes: Sequence[Outcome], promises_ms: Mapping[Promised, float], seconds: float) -> Summary:
    """Figures of a run of so many seconds. Latencies are those of whole answers; a failed request keeps no promise."""
    whole = [outcome for outcome in outcomes if outcome.ok]
    errors: dict[str, ErrorCount] = {}
    for outcome in outcomes:
        if not outcome.ok:
            known = errors.get(outcome.code, ErrorCount(0, outcome.detail))
            errors[outcome.code] = ErrorCount(known.count + 1, known.first)
    return Summary(
        seconds=seconds,
        ok=len(whole),
        failed=len(outcomes) - len(whole),
        prompt_tokens=sum(outcome.prompt_tokens for outcome in whole),
        completion_tokens=sum(outcome.completion_tokens for outcome in whole),
        latency=_latency(whole),
        good=sum(keeps(outcome, promises_ms) for outcome in whole) if promises_ms else None,
        errors=dict(sorted(errors.items(), key=lambda entry: (-entry[1].count, entry[0]))),
        tasks={
            task: _latency([one for one in whole if one.task == task])
            for task, _ in Counter(one.task for one in outcomes).most_common()
        },
        late=Distribution.of([outcome.sent - outcome.due for outcome in outcomes]),
    )


def keeps(outcome: Outcome, promises_ms: Mapping[Promised, float]) -> bool:
    """Whether a whole answer came in time; one without a second token has no time per token to miss."""
    taken = {"ttft": outcome.ttft_s, "tpot": outcome.tpot_s or 0.0, "e2e": outcome.e2e_s}
    return all(taken[name] * 1e3 <= limit for name, limit in promises_ms.items())


def _latency(whole: Sequence[Outcome]) -> dict[Metric, Distribution | None]:
    return {
        "ttft": Distribution.of([outcome.ttft_s for outcome in whole]),
        "itl": Distribution.of([gap for outcome in whole for gap in outcome.gaps_s]),
        "tpot": Distribution.of([outcome.tpot_s for outcome in whole if outcome.tpot_s is not None]),
        "e2e": Distribution.of([outcome.e2e_s for outcome in whole]),
    }
