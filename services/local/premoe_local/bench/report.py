"""A run as tables and as one JSON document. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from premoe_local.bench.outcome import Outcome
from premoe_local.bench.summary import METRICS, PERCENTILES, Distribution, Promised, Summary

LATENCY_COLUMNS = ("latency, ms", "mean", *(f"p{number}" for number in PERCENTILES), "max")
TASK_COLUMNS = ("task", "answers", "TTFT p50, ms", "TPOT p50, ms", "E2E p50, ms")
ERROR_COLUMNS = ("error", "requests", "the first")
_TITLES = {"ttft": "TTFT, first token", "itl": "ITL, between tokens", "tpot": "TPOT, per token", "e2e": "E2E, whole"}


@dataclass(frozen=True, slots=True)
class Result:
    """All there is to tell. ``load`` is how the run was asked for."""

    load: Mapping[str, Any]
    promises_ms: Mapping[Promised, float]
    planned: int
    unfinished: int
    """Sent, and still open when the run was stopped."""
    outcomes: Sequence[Outcome]
    summary: Summary


def total_rows(result: Result) -> list[tuple[str, str]]:
    summary = result.summary
    rows = [
        ("requests answered", f"{summary.ok} of {result.planned}"),
        ("requests failed", str(summary.failed)),
        ("seconds", f"{summary.seconds:.2f}"),
        ("requests/s", f"{summary.rate(summary.ok):.2f}"),
        ("tokens/s, answers", f"{summary.rate(summary.completion_tokens):.1f}"),
        ("tokens/s, with prompts", f"{summary.rate(summary.completion_tokens + summary.prompt_tokens):.1f}"),
    ]
    if result.unfinished:
        rows.insert(2, ("requests open when stopped", str(result.unfinished)))
    if summary.good is not None:
        held = ", ".join(f"{name} ≤ {limit:g} ms" for name, limit in result.promises_ms.items())
        share = summary.good / max(1, summary.ok + summary.failed)
        rows.append((f"goodput, requests/s with {held}", f"{summary.rate(summary.good):.2f} ({share:.1%})"))
    return rows


def latency_rows(summary: Summary) -> list[tuple[str, ...]]:
    rows = [(_TITLES[metric], *_cells(summary.latency[metric])) for metric in METRICS]
    return [*rows, ("sent after it was due", *_cells(summary.late))]


def task_rows(summary: Summary) -> list[tuple[object, ...]]:
    def median(spread: Distribution | None) -> str:
        return "" if spread is None else f"{spread.percentiles[0]:.1f}"

    return [
        (task, 0 if found["e2e"] is None else found["e2e"].count, *(median(found[m]) for m in ("ttft", "tpot", "e2e")))
        for task, found in summary.tasks.items()
    ]


def error_rows(summary: Summary) -> list[tuple[object, ...]]:
    return [(code, errors.count, errors.first) for code, errors in summary.errors.items()]


def document(result: Result) -> dict[str, object]:
    """Everything, every request included; times in seconds, latencies in milliseconds."""
    summary = result.summary
    goodput = None if summary.good is None else {"count": summary.good, "requests_per_s": summary.rate(summary.good)}
    return {
        "load": dict(result.load),
        "seconds": summary.seconds,
        "requests": {
            "planned": result.planned,
            "ok": summary.ok,
            "failed": summary.failed,
            "unfinished": result.unfinished,
        },
        "requests_per_s": summary.rate(summary.ok),
        "completion_tokens_per_s": summary.rate(summary.completion_tokens),
        "total_tokens_per_s": summary.rate(summary.completion_tokens + summary.prompt_tokens),
        "promises_ms": dict(result.promises_ms),
        "goodput": goodput,
        "latency_ms": {metric: _spread(summary.latency[metric]) for metric in METRICS},
        "sent_late_ms": _spread(summary.late),
        "tasks": {
            task: {metric: _spread(spread) for metric, spread in found.items()} for task, found in summary.tasks.items()
        },
        "errors": {code: {"count": errors.count, "first": errors.first} for code, errors in summary.errors.items()},
        "samples": [_sample(outcome) for outcome in sorted(result.outcomes, key=lambda outcome: outcome.due)],
    }


def _cells(spread: Distribution | None) -> tuple[str, ...]:
    if spread is None:
        return ("",) * (len(LATENCY_COLUMNS) - 1)
    return tuple(f"{value:.1f}" for value in (spread.mean, *spread.percentiles, spread.largest))


def _spread(spread: Distribution | None) -> dict[str, float] | None:
    if spread is None:
        return None
    percentiles = {f"p{number}": value for number, value in zip(PERCENTILES, spread.percentiles, strict=True)}
    return {"count": spread.count, "mean": spread.mean, **percentiles, "max": spread.largest}


def _sample(outcome: Outcome) -> dict[str, object]:
    return {
        "task": outcome.task,
        "due": outcome.due,
        "sent": outcome.sent,
        "first": outcome.moments[0] if outcome.moments else None,
        "ended": outcome.ended,
        "prompt_tokens": outcome.prompt_tokens,
        "completion_tokens": outcome.completion_tokens,
        "code": outcome.code,
    }
