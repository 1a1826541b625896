"""What counting costs: CPU seconds of one token, one request and one scrape of a worker, in one process.

    python benchmarks/metrics.py [--rounds 15] [--json FILE]

A token is what the worker's event loop does more for it: ``RequestMeter.note``, against a loop that hands the same
events on without it. A request is all else that is counted of one, under a sampled span, so with exemplars. The scrape
is of a registry with 48 layers, 64 tasks and 1,000 requests behind it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import click
from _report import Report, interleaved, json_option
from opentelemetry import trace
from premoe_servicekit.metrics import Metrics
from premoe_worker.domain import Delta, Event, Finished, PatternChoice, Started
from premoe_worker.metrics import WorkerMetrics
from prometheus_client import generate_latest

from premoe_runtime.engines.base import StepReport
from premoe_runtime.serving.admission import Admission
from premoe_runtime.serving.reports import Residency, ServingStats, SwapReport

TOKENS, REQUESTS, TASKS, LAYERS, SLOTS = 20_000, 1_000, 64, 48, 34
SPAN = trace.SpanContext(1, 2, is_remote=True, trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED))


class Loop:
    """A serving loop of a large model that answers at once."""

    last_step = StepReport()
    admission = Admission(1)

    def look(self, timeout: float) -> tuple[Residency, ServingStats]:
        rows = tuple(tuple(range(SLOTS)) for _ in range(LAYERS))
        return Residency(1, rows, 1, 1, 0, 0, (), ()), ServingStats(phase_ns=Counter(copy=1))


def events_of(request: int) -> tuple[Event, ...]:
    choice = PatternChoice("specialist", f"{request % TASKS}")
    return Started(choice, 7, SwapReport()), Delta("a", (1,)), Finished("stop", 7, 1, 0.9, 1.0, 1.0)


def passed_on(events: Sequence[Event], note: Callable[[Event], None] | None) -> float:
    """CPU seconds an event of a loop over ``events``."""
    began = time.process_time()
    if note is None:
        for _ in events:
            pass
    else:
        for event in events:
            note(event)
    return (time.process_time() - began) / len(events)


@click.command()
@click.option("--rounds", default=15, show_default=True)
@json_option
def main(rounds: int, json_file: Path | None) -> None:
    """Measure and print."""
    report = Report("metrics", {"tokens": TOKENS, "requests": REQUESTS, "tasks": TASKS, "layers": LAYERS})
    metrics = Metrics()
    counted = WorkerMetrics(metrics, "tiny", lambda pattern: f"task {pattern}")
    counted.show(Loop())  # type: ignore[arg-type]  # what is asked of a Front
    tokens = [Delta("a", (1,))] * TOKENS

    def requests() -> float:
        began = time.process_time()
        with trace.use_span(trace.NonRecordingSpan(SPAN)):
            for number in range(REQUESTS):
                with counted.request() as meter:
                    for event in events_of(number):
                        meter.note(event)
        return (time.process_time() - began) / REQUESTS

    def scrape() -> float:
        began = time.process_time()
        generate_latest(metrics.registry)
        return time.process_time() - began

    samples = interleaved(
        {
            "token, not counted": lambda: passed_on(tokens, None),
            "token": lambda: passed_on(tokens, counted.request().note),
            "request": requests,
            "scrape": scrape,
        },
        rounds,
    )
    for name, seconds in samples.items():
        report.samples(name, seconds)
    report.finish(json_file)


if __name__ == "__main__":
    main()
