"""What a worker counts: latencies as they happen, and what the serving loop keeps, read when somebody scrapes.

Names follow vLLM's. Tasks are those of stored patterns: what a request calls its task is never a label.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, get_args

from premoe_dataplane.breaker import Breakers
from premoe_dataplane.counts import Counts
from premoe_dataplane.plan import SCHEMES, Tier
from premoe_servicekit.metrics import COUNTER, GAUGE, OTHER, Few, Metric, Metrics, Sample, exemplar

from premoe_runtime.formats.errors import PremoeError
from premoe_worker.domain import Delta, Event, Finished, Started

if TYPE_CHECKING:
    # It brings torch.
    from premoe_runtime.serving.front import Front

LOOK_S = 1.0
"""How long a scrape waits for the serving loop."""
_MASS = (0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 1.0)
_MODEL = ("model_name",)

KNOWN = (
    Metric("num_requests_running", GAUGE, "Requests that the engine runs.", _MODEL),
    Metric(
        "num_requests_waiting", GAUGE, "Requests that have come and do not run yet, whatever they wait for.", _MODEL
    ),
    Metric("kv_cache_usage_perc", GAUGE, "Share of the KV cache that sequences hold, 0 to 1.", _MODEL),
    Metric("prompt_tokens", COUNTER, "Prompt tokens computed.", _MODEL),
    Metric("generation_tokens", COUNTER, "Tokens generated.", _MODEL),
)
"""Read at once, whatever the serving loop does."""

ASKED = (
    Metric("expert_slots", GAUGE, "Slots for experts, by MoE layer.", (*_MODEL, "layer")),
    Metric("resident_experts", GAUGE, "Experts that lie in a slot, by MoE layer.", (*_MODEL, "layer")),
    Metric("expert_device_bytes", GAUGE, "Memory of all expert slots.", _MODEL),
    Metric("host_tier_bytes", GAUGE, "Memory of the host tier.", _MODEL),
    Metric("residency_generation", GAUGE, "Grows with every change of what is resident.", _MODEL),
    Metric("swaps", COUNTER, "Swaps that were published.", _MODEL),
    Metric("failed_swaps", COUNTER, "Swaps that could not be carried out.", _MODEL),
    Metric("paused_patterns", COUNTER, "Times that a running pattern gave way to another one.", _MODEL),
    Metric(
        "expert_bytes",
        COUNTER,
        "Bytes of experts moved into slots, by where they came from: host memory or the expert store.",
        (*_MODEL, "source"),
    ),
    Metric("host_tier_queries", COUNTER, "Experts that swaps needed.", _MODEL),
    Metric("host_tier_hits", COUNTER, "Those that lay in host memory already.", _MODEL),
    Metric(
        "swap_phase_seconds",
        COUNTER,
        "Time that swaps took, by phase: fetch, plan, retire, copy, publish. Others decode meanwhile.",
        (*_MODEL, "phase"),
    ),
)
"""Asked of the serving loop."""

FETCHES = (
    Metric(
        "fetched_bytes",
        COUNTER,
        "Bytes of experts that came and were right, by how they were read and where they lay.",
        (*_MODEL, "scheme", "tier"),
    ),
    Metric(
        "fetch_wrong_copies",
        COUNTER,
        "Pieces of experts, or experts, that came wrong and were read again from elsewhere, by where they lay.",
        (*_MODEL, "tier"),
    ),
    Metric(
        "fetch_pieces_again",
        COUNTER,
        "Pieces of experts that did not come, or came wrong, by how they were asked for; another source is next.",
        (*_MODEL, "scheme"),
    ),
    Metric(
        "fetch_sources_resting",
        GAUGE,
        "Servers of experts that failed lately and are left alone for a while.",
        (*_MODEL, "scheme"),
    ),
)
"""Of the fetcher."""


class WorkerMetrics:
    """Of one served model. ``task_of`` gives the task of a stored pattern that has been read, by its id."""

    def __init__(
        self, metrics: Metrics, model_name: str = "", task_of: Callable[[str], str] = lambda pattern_id: ""
    ) -> None:
        self._metrics = metrics
        self.model_name = model_name
        self._task_of = task_of
        self._tasks, self._reasons = Few(), Few()
        seconds = metrics.histogram
        self.first_token = seconds(
            "time_to_first_token_seconds", "From the arrival of a request to its first token.", _MODEL
        ).labels(model_name)
        self.inter_token = seconds(
            "inter_token_latency_seconds", "From one piece of output to the next.", _MODEL
        ).labels(model_name)
        self.whole = seconds(
            "e2e_request_latency_seconds", "From the arrival of a request to its last token.", _MODEL
        ).labels(model_name)
        self.swap = seconds(
            "request_swap_seconds",
            "Swaps that requests waited for; requests that found all experts do not count.",
            _MODEL,
        ).labels(model_name)
        self._success = metrics.counter(
            "request_success",
            "Requests that ended, by why: stop, length, or abort where the caller left.",
            (*_MODEL, "finished_reason"),
        )
        self._failures = metrics.counter(
            "request_failures", "Requests that ended in an error, by its reason.", (*_MODEL, "reason")
        )
        self._queries = metrics.counter("pattern_queries", "Requests that began to run, by task.", (*_MODEL, "task"))
        self._hits = metrics.counter(
            "pattern_hits", "Those that found every expert of their pattern resident.", (*_MODEL, "task")
        )
        self._mass = metrics.histogram(
            "retained_routing_mass",
            "Share of the router's probability mass that the kept experts held, a request's mean.",
            (*_MODEL, "task"),
            _MASS,
        )

    def show(self, front: Front) -> None:
        """Tell of the serving loop from now on."""
        name = self.model_name

        def known() -> Iterator[Sample]:
            step, admission = front.last_step, front.admission
            values = (admission.running, admission.waiting, step.kv_used, step.prompt_tokens, step.completion_tokens)
            for metric, value in zip(KNOWN, values, strict=True):
                yield metric.name, (name,), value

        self._metrics.on_demand(KNOWN, known)
        self._metrics.on_demand(ASKED, lambda: _asked(front, name))

    def show_fetches(self, counts: Counts, breakers: Breakers) -> None:
        """Tell of what a fetcher reads from now on."""
        name = self.model_name

        def read() -> Iterator[Sample]:
            num_bytes, wrong, again = counts.now()
            yield from (("fetched_bytes", (name, *key), value) for key, value in num_bytes.items())
            # Of every tier from the start, so that the first one is an increase: somebody is woken by it.
            yield from (("fetch_wrong_copies", (name, tier), wrong[tier]) for tier in get_args(Tier))
            yield from (("fetch_pieces_again", (name, scheme), value) for scheme, value in again.items())
            resting = Counter(place.scheme for place in breakers.open())
            yield from (("fetch_sources_resting", (name, scheme), resting[scheme]) for scheme in SCHEMES)

        self._metrics.on_demand(FETCHES, read)

    def request(self) -> RequestMeter:
        """Measures one request, from now to the end of a ``with`` block: hand it every event before that goes out."""
        return RequestMeter(self)

    def began(self, event: Started) -> str:
        """Count what a request begins with. Returns its task as a label."""
        choice = event.choice
        task = "full" if choice.decision == "full" else self._tasks(self._task_of(choice.pattern_id) or OTHER)
        self._queries.labels(self.model_name, task).inc()
        if event.swap.phases:
            self.swap.observe(event.swap.milliseconds / 1e3, exemplar())
        else:
            self._hits.labels(self.model_name, task).inc()
        return task

    def ended(self, reason: str) -> None:
        self._success.labels(self.model_name, "abort" if reason == "cancelled" else reason).inc()

    def failed(self, reason: str) -> None:
        self._failures.labels(self.model_name, self._reasons(reason)).inc()

    def kept(self, task: str, mass: float) -> None:
        self._mass.labels(self.model_name, task).observe(mass, exemplar())


class RequestMeter:
    """The times of one request. A token costs one observation."""

    __slots__ = ("_arrived", "_ended", "_last", "_metrics", "_task")

    def __init__(self, metrics: WorkerMetrics) -> None:
        self._metrics = metrics
        self._arrived = time.perf_counter()
        self._last = 0.0
        self._task = OTHER
        self._ended = False

    def note(self, event: Event) -> None:
        if isinstance(event, Delta):
            if event.token_ids:
                self._note_tokens()
        elif isinstance(event, Started):
            self._task = self._metrics.began(event)
        elif isinstance(event, Finished):
            self._ended = True
            self._metrics.whole.observe(time.perf_counter() - self._arrived, exemplar())
            self._metrics.kept(self._task, event.retained_mass)
            self._metrics.ended(event.reason)

    def __enter__(self) -> RequestMeter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ended:
            return
        if isinstance(error, Exception):
            self._metrics.failed(error.reason if isinstance(error, PremoeError) else PremoeError.default_reason)
        else:
            # Closed or cancelled by whoever asked.
            self._metrics.ended("abort")

    def _note_tokens(self) -> None:
        now, last = time.perf_counter(), self._last
        self._last = now
        if last:
            self._metrics.inter_token.observe(now - last)
        else:
            self._metrics.first_token.observe(now - self._arrived, exemplar())


def _asked(front: Front, name: str) -> Iterator[Sample]:
    residency, stats = front.look(LOOK_S)
    for layer, slots in enumerate(residency.slots):
        yield "expert_slots", (name, str(layer)), len(slots)
        yield "resident_experts", (name, str(layer)), sum(expert >= 0 for expert in slots)
    single: dict[str, float] = {
        "expert_device_bytes": residency.device_bytes,
        "host_tier_bytes": residency.host_bytes,
        "residency_generation": residency.generation,
        "swaps": stats.swaps,
        "failed_swaps": stats.failed_swaps,
        "paused_patterns": stats.pauses,
        "host_tier_queries": stats.blobs_loaded,
        "host_tier_hits": stats.host_hits,
    }
    yield from ((metric, (name,), value) for metric, value in single.items())
    per_blob = residency.device_bytes / sum(map(len, residency.slots))
    yield "expert_bytes", (name, "host"), stats.host_hits * per_blob
    yield "expert_bytes", (name, "store"), stats.bytes_fetched
    for phase, spent_ns in stats.phase_ns.items():
        yield "swap_phase_seconds", (name, phase), spent_ns / 1e9
