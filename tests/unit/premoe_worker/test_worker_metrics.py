"""What a worker counts, from the events of its answers and from its serving loop."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from opentelemetry import trace
from premoe_dataplane.breaker import Breakers, Place
from premoe_dataplane.counts import Counts
from premoe_servicekit.metrics import Metrics
from premoe_worker.domain import Delta, Event, Finished, PatternChoice, Started
from premoe_worker.metrics import WorkerMetrics
from support.metrics import Scrape, read

from premoe_runtime.engines.base import StepReport
from premoe_runtime.formats.errors import Exhausted, Unavailable
from premoe_runtime.serving.admission import Admission
from premoe_runtime.serving.reports import Residency, ServingStats, SwapPhase, SwapReport

STORED = {"1" * 64: "digits", "2" * 64: "generalist"}
SWAP = SwapReport(blobs=3, bytes=300, phases=(SwapPhase("copy", 0, 2_000_000_000),))
SPAN = trace.SpanContext(0xABC, 0xDEF, is_remote=True, trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED))


def started(pattern: str = "1" * 64, swap: SwapReport = SwapReport(), task: str = "digits") -> Started:
    return Started(PatternChoice("specialist", pattern, task), 7, swap)


def finished(reason: Any = "stop") -> Finished:
    return Finished(reason, 7, 3, 0.92, 1.0, 2.0)


def answer(counted: WorkerMetrics, *events: Event, error: BaseException | None = None) -> None:
    """One request with these events, which ends in ``error``."""
    with counted.request() as meter:
        for event in events:
            meter.note(event)
        if error is not None:
            raise error


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def counted(metrics: Metrics) -> WorkerMetrics:
    return WorkerMetrics(metrics, "tiny", lambda pattern: STORED.get(pattern, ""))


def test_an_answer_is_timed_and_counted_once(metrics: Metrics, counted: WorkerMetrics) -> None:
    tokens = [Delta(text, (number,)) for number, text in enumerate("abc")]
    with trace.use_span(trace.NonRecordingSpan(SPAN)):
        answer(counted, started(swap=SWAP), Delta("", ()), *tokens, finished())
    found = read(metrics)
    assert found.value("premoe:time_to_first_token_seconds_count", model_name="tiny") == 1
    assert found.value("premoe:inter_token_latency_seconds_count", model_name="tiny") == 2
    assert found.value("premoe:e2e_request_latency_seconds_count", model_name="tiny") == 1
    assert found.value("premoe:request_success_total", finished_reason="stop") == 1
    assert found.value("premoe:request_swap_seconds_sum") == 2
    assert found.value("premoe:pattern_queries_total", task="digits") == 1
    assert found.value("premoe:pattern_hits_total") == 0
    assert found.value("premoe:retained_routing_mass_sum", task="digits") == pytest.approx(0.92)
    for name in ("time_to_first_token_seconds", "e2e_request_latency_seconds", "request_swap_seconds"):
        (exemplar,) = found.exemplars(f"premoe:{name}_bucket")
        assert exemplar.labels["trace_id"] == f"{0xABC:032x}"


def test_a_request_that_finds_its_experts_is_a_hit(metrics: Metrics, counted: WorkerMetrics) -> None:
    answer(counted, started("2" * 64), finished("length"))
    found = read(metrics)
    assert found.value("premoe:pattern_hits_total", task="generalist") == 1
    assert found.value("premoe:request_swap_seconds_count") == 0


def test_what_a_request_calls_its_task_is_no_label(metrics: Metrics, counted: WorkerMetrics) -> None:
    for number in range(1000):
        answer(counted, started(f"{number:064x}", task=f"<script {number}>"), finished())
    answer(counted, Started(PatternChoice("full", f"{7:064x}", "anything"), 1, SwapReport()), finished())
    for name in ("pattern_queries_total", "pattern_hits_total", "retained_routing_mass_count"):
        assert read(metrics).labels(f"premoe:{name}", "task") == {"other", "full"}


def test_errors_are_counted_by_reason_and_leavers_as_aborts(metrics: Metrics, counted: WorkerMetrics) -> None:
    for error in (Exhausted("x", reason="QUEUE_FULL"), Unavailable("y", reason="DRAINING"), KeyError("z")):
        with pytest.raises(type(error)):
            answer(counted, error=error)
    for leaves in (GeneratorExit(), KeyboardInterrupt()):
        with pytest.raises(type(leaves)):
            answer(counted, started(), error=leaves)
    with pytest.raises(GeneratorExit):
        answer(counted, finished(), error=GeneratorExit())
    answer(counted, finished("cancelled"))
    found = read(metrics)
    assert {
        reason: found.value("premoe:request_failures_total", reason=reason)
        for reason in found.labels("premoe:request_failures_total", "reason")
    } == {"QUEUE_FULL": 1, "DRAINING": 1, "INTERNAL": 1}
    assert found.value("premoe:request_success_total", finished_reason="abort") == 3
    assert found.value("premoe:request_success_total", finished_reason="stop") == 1


class Loop:
    """A serving loop that answers, is silent, or has ended."""

    last_step = StepReport(steps=9, running=2, kv_used=0.25, prompt_tokens=40, completion_tokens=30)

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.admission = Admission(9)
        self.admission.running = 2
        for _ in range(7):
            self.admission.enter()
        self.waited: list[float] = []

    def look(self, timeout: float) -> tuple[Residency, ServingStats]:
        self.waited.append(timeout)
        if self.failure is not None:
            raise self.failure
        stats = ServingStats(
            swaps=4,
            blobs_loaded=9,
            bytes_loaded=900,
            bytes_fetched=500,
            host_hits=4,
            phase_ns=Counter(copy=1_500_000_000),
        )
        return Residency(17, ((0, 3, -1), (1, -1)), 500, 4096, 2, 1, ("a",), ()), stats


def shown(metrics: Metrics, counted: WorkerMetrics, loop: Loop) -> Scrape:
    counted.show(loop)  # type: ignore[arg-type]  # what is asked of a Front
    return read(metrics)


def test_what_the_loop_keeps_is_read_when_scraped(metrics: Metrics, counted: WorkerMetrics) -> None:
    loop = Loop()
    found = shown(metrics, counted, loop)
    values = {
        "num_requests_running": 2,
        "num_requests_waiting": 5,
        "kv_cache_usage_perc": 0.25,
        "prompt_tokens_total": 40,
        "generation_tokens_total": 30,
        "residency_generation": 17,
        "expert_device_bytes": 500,
        "host_tier_bytes": 4096,
        "swaps_total": 4,
        "host_tier_queries_total": 9,
        "host_tier_hits_total": 4,
    }
    assert {name: found.value(f"premoe:{name}", model_name="tiny") for name in values} == values
    by_layer = {layer: found.value("premoe:expert_slots", layer=layer) for layer in ("0", "1")}
    assert by_layer == {"0": 3, "1": 2}
    assert [found.value("premoe:resident_experts", layer=layer) for layer in ("0", "1")] == [2, 1]
    assert found.value("premoe:expert_bytes_total", source="host") == 400
    assert found.value("premoe:expert_bytes_total", source="store") == 500
    assert found.value("premoe:swap_phase_seconds_total", phase="copy") == 1.5
    assert loop.waited
    assert max(loop.waited) <= 1


@pytest.mark.parametrize(
    "failure", [TimeoutError(), Unavailable("it has stopped serving", reason="DRAINING"), RuntimeError("gone")]
)
def test_a_loop_that_is_silent_or_gone_costs_only_its_own_values(
    metrics: Metrics, counted: WorkerMetrics, failure: Exception
) -> None:
    loop = Loop(failure)
    found = shown(metrics, counted, loop)
    assert found.value("premoe:num_requests_waiting") == 5
    assert found.value("premoe:generation_tokens_total") == 30
    assert not found.families["premoe:swaps"].samples
    assert found.families["premoe:swaps"].documentation


def test_wrong_copies_are_told_of_every_tier_from_the_start(metrics: Metrics, counted: WorkerMetrics) -> None:
    """Of a series that begins at 1, no increase is seen."""
    counts, breakers = Counts(), Breakers()
    counted.show_fetches(counts, breakers)
    assert read(metrics).labels("premoe:fetch_wrong_copies_total", "tier") == {"node", "redis", "object"}
    assert read(metrics).value("premoe:fetch_wrong_copies_total") == 0
    counts.wrong("redis")
    counts.read("http", "node", 7)
    breakers.failed(Place("http", "10.0.0.1:50055"))
    found = read(metrics)
    assert found.value("premoe:fetch_wrong_copies_total", model_name="tiny", tier="redis") == 1
    assert found.value("premoe:fetched_bytes_total", scheme="http", tier="node") == 7
    assert found.value("premoe:fetch_sources_resting", scheme="http") == 1
    assert found.value("premoe:fetch_sources_resting") == 1
