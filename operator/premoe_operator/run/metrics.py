"""Metrics of the operator, in a registry of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from premoe_servicekit import metrics as kit
from premoe_servicekit.metrics import GAUGE, Metric, Sample
from prometheus_client import generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_ON_DEMAND = (
    Metric("models", GAUGE, "PrunedModels by reason of Ready.", ("reason",)),
    Metric("watch_age_seconds", GAUGE, "Time since a watch last said anything.", ("watch",)),
    Metric("queue_length", GAUGE, "PrunedModels that wait for a reconcile."),
)


class Metrics(kit.Metrics):
    """Counted as things happen; the inventory and watch ages are read when asked for."""

    def __init__(self) -> None:
        super().__init__("premoe_operator_")
        self.reconciles = self.counter("reconciles", "Reconciles by outcome.", ("outcome",))
        self.reconcile_seconds = self.histogram("reconcile_seconds", "Duration of a reconcile.", buckets=_SECONDS)
        self.api_requests = self.counter(
            "api_requests",
            "Calls of the Kubernetes API but watches; code 0 is no answer.",
            ("verb", "resource", "code"),
        )
        self.missed_events = self.counter("missed_events", "PrunedModels whose changes only a resync found.")
        self.is_leader = self.gauge("leader", "1 while this replica acts.")

    def on_call(self, verb: str, plural: str, code: int) -> None:
        """Count one API call."""
        self.api_requests.labels(verb, plural, str(code)).inc()

    def show(
        self,
        inventory: Callable[[], Mapping[str, int]],
        watch_ages_s: Callable[[], Mapping[str, float]],
        queue_length: Callable[[], int],
    ) -> None:
        """Read these whenever the metrics are asked for."""

        def read() -> Iterator[Sample]:
            yield from (("models", (reason,), count) for reason, count in sorted(inventory().items()))
            yield from (("watch_age_seconds", (watch,), age_s) for watch, age_s in sorted(watch_ages_s().items()))
            yield "queue_length", (), queue_length()

        self.on_demand(_ON_DEMAND, read)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
