"""Metrics of the operator, in a registry of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Counted as things happen; the inventory and watch ages are read when asked for."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.reconciles = Counter(
            "premoe_operator_reconciles", "Reconciles by outcome.", ["outcome"], registry=self.registry
        )
        self.reconcile_seconds = Histogram(
            "premoe_operator_reconcile_seconds", "Duration of a reconcile.", registry=self.registry, buckets=_SECONDS
        )
        self.api_requests = Counter(
            "premoe_operator_api_requests",
            "Calls of the Kubernetes API but watches; code 0 is no answer.",
            ["verb", "resource", "code"],
            registry=self.registry,
        )
        self.missed_events = Counter(
            "premoe_operator_missed_events", "PrunedModels whose changes only a resync found.", registry=self.registry
        )
        self.is_leader = Gauge("premoe_operator_leader", "1 while this replica acts.", registry=self.registry)

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
        self.registry.register(_OnDemand(inventory, watch_ages_s, queue_length))

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)


class _OnDemand(Collector):
    def __init__(
        self,
        inventory: Callable[[], Mapping[str, int]],
        watch_ages_s: Callable[[], Mapping[str, float]],
        queue_length: Callable[[], int],
    ) -> None:
        self._inventory = inventory
        self._watch_ages_s = watch_ages_s
        self._queue_length = queue_length

    def collect(self) -> Iterable[GaugeMetricFamily]:
        models = GaugeMetricFamily("premoe_operator_models", "PrunedModels by reason of Ready.", labels=["reason"])
        for reason, count in sorted(self._inventory().items()):
            models.add_metric([reason], count)
        yield models
        ages = GaugeMetricFamily(
            "premoe_operator_watch_age_seconds", "Time since a watch last said anything.", labels=["watch"]
        )
        for watch, age_s in sorted(self._watch_ages_s().items()):
            ages.add_metric([watch], age_s)
        yield ages
        yield GaugeMetricFamily(
            "premoe_operator_queue_length", "PrunedModels that wait for a reconcile.", value=self._queue_length()
        )
