"""Metrics of one process: a registry of its own, what is in it as a list, and Prometheus text on a port of its own.

metrics = Metrics()
queries = metrics.counter("retrieval_queries", "Signatures that a task was looked for.", ("decision",))
queries.labels("specialist").inc()
metrics.on_demand((Metric("expert_slots", GAUGE, "Expert slots.", ("layer",)),), read)

Label values come from a fixed list, from what the process serves, or through `Few`: never as many as clients like.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, TypeAlias
from wsgiref.simple_server import WSGIRequestHandler, make_server

from opentelemetry import trace
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector

from premoe_servicekit.errors import one_line
from premoe_servicekit.server import check_port_is_free, in_use, join_address, resolved
from premoe_servicekit.settings import ServerSettings

PREFIX = "premoe:"
COUNTER: Literal["counter"] = "counter"
GAUGE: Literal["gauge"] = "gauge"
HISTOGRAM: Literal["histogram"] = "histogram"
Kind = Literal["counter", "gauge", "histogram"]

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 180.0)
"""Buckets of what a user waits for."""
IDLE_S = 10.0
"""A reader that sends or takes nothing for so long is left."""
_OPEN_METRICS = "application/openmetrics-text; version=1.0.0; escaping=allow-utf-8"
OTHER = "other"
MOST_VALUES = 256

Sample: TypeAlias = tuple[str, Sequence[str], float]
"""Name as in `Metric`, label values, value."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Metric:
    """What is known of a metric before it has a value. ``name``: without prefix, and without a counter's `_total`."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


VERSION = Metric("build_info", GAUGE, "1, labelled with the version of PreMoE.", ("version",))


class Metrics:
    """A registry, and the list of what was put into it. Counting is safe from any thread."""

    def __init__(self, prefix: str = PREFIX) -> None:
        self.registry = CollectorRegistry()
        self.prefix = prefix
        self.listed: list[Metric] = []

    def counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Counter:
        self._list(name, COUNTER, text, labels)
        return Counter(self.prefix + name, text, labels, registry=self.registry)

    def gauge(self, name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
        self._list(name, GAUGE, text, labels)
        return Gauge(self.prefix + name, text, labels, registry=self.registry)

    def histogram(
        self, name: str, text: str, labels: Sequence[str] = (), buckets: Sequence[float] = SECONDS
    ) -> Histogram:
        self._list(name, HISTOGRAM, text, labels)
        return Histogram(self.prefix + name, text, labels, buckets=buckets, registry=self.registry)

    def on_demand(self, metrics: Sequence[Metric], read: Callable[[], Iterable[Sample]]) -> None:
        """Counters and gauges whose values somebody else owns: ``read`` is called at every scrape, on its thread.

        It must be bounded in time. When it raises, these metrics have no value in that scrape; others do.
        """
        self.listed += metrics
        self.registry.register(_OnDemand(self.prefix, metrics, read))

    def add_process(self) -> None:
        """Memory, CPU time and open files of this process, and its version."""
        self.on_demand((VERSION,), lambda: [(VERSION.name, (_version(),), 1.0)])
        ProcessCollector(registry=self.registry)

    def _list(self, name: str, kind: Kind, text: str, labels: Sequence[str]) -> None:
        self.listed.append(Metric(name, kind, text, tuple(labels)))


class Few:
    """Label values that are few by nature, made few by rule: the first ``most`` as they are, later ones `other`."""

    def __init__(self, most: int = MOST_VALUES) -> None:
        self._most = most
        self._seen: set[str] = set()

    def __call__(self, value: str) -> str:
        if value not in self._seen:
            if len(self._seen) >= self._most:
                return OTHER
            self._seen.add(value)
        return value


def exemplar() -> dict[str, str] | None:
    """The current span, to be found by in traces; None where nothing is sampled."""
    context = trace.get_current_span().get_span_context()
    if not (context.is_valid and context.trace_flags.sampled):
        return None
    return {"trace_id": trace.format_trace_id(context.trace_id), "span_id": trace.format_span_id(context.span_id)}


class _OnDemand(Collector):
    def __init__(self, prefix: str, metrics: Sequence[Metric], read: Callable[[], Iterable[Sample]]) -> None:
        self._prefix, self._metrics, self._read = prefix, metrics, read
        self._failing = False

    def describe(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        for metric in self._metrics:
            family = CounterMetricFamily if metric.kind == COUNTER else GaugeMetricFamily
            yield family(self._prefix + metric.name, metric.help, labels=metric.labels)

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        families = dict(zip((metric.name for metric in self._metrics), self.describe(), strict=True))
        for name, labels, value in self._samples():
            families[name].add_metric(labels, value)
        yield from families.values()

    def _samples(self) -> Sequence[Sample]:
        try:
            samples = list(self._read())
        except Exception as error:
            # A scrape must tell what it can, whatever has become of the part that is asked.
            if not self._failing:
                names = ", ".join(metric.name for metric in self._metrics)
                log.warning("no values for now of the metrics %s: %s", names, one_line(error))
            self._failing = True
            return ()
        self._failing = False
        return samples


class MetricsServer:
    """Serves the text on a port of its own, from threads of its own: a busy event loop does not hold up a scrape."""

    def __init__(self, metrics: Metrics, settings: ServerSettings) -> None:
        self._app = _application(metrics.registry)
        self._host = settings.metrics_host or settings.host
        self._port = settings.metrics_port or 0
        self._server: _Server | None = None

    async def start(self) -> str:
        """Bind and answer; returns the address. Raises Unavailable (PORT_IN_USE) or InvalidInput (ADDRESS_INVALID)."""
        check_port_is_free(self._host, self._port)
        family, address = resolved(self._host, self._port)

        class Server(_Server):
            address_family = family

        try:
            # In a thread: the base class asks DNS for a name that nobody needs.
            self._server = await asyncio.to_thread(make_server, address[0], self._port, self._app, Server, _Handler)
        except OSError:
            raise in_use(self._host, self._port) from None
        threading.Thread(target=self._server.serve_forever, name="premoe-metrics", daemon=True).start()
        return join_address(self._host, self._server.server_port)

    async def stop(self) -> None:
        if self._server is not None:
            await asyncio.to_thread(self._server.shutdown)
            self._server.server_close()


class _Server(ThreadingWSGIServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader that went away or never spoke is no news, and no traceback."""


class _Handler(WSGIRequestHandler):
    timeout = IDLE_S

    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are no news either."""


def _application(registry: CollectorRegistry) -> Callable[..., Iterable[bytes]]:
    """prometheus-client's own, asked in one of two ways.

    Version 0.26 turns the colons of sample names into underscores unless a reader of OpenMetrics asks for UTF-8 names,
    which older Prometheus does not, and raises for versions that are no number. Our names need no escaping.
    """
    answer = make_wsgi_app(registry)

    def application(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        wanted = "application/openmetrics-text" in environ.get("HTTP_ACCEPT", "")
        environ["HTTP_ACCEPT"] = _OPEN_METRICS if wanted else ""
        try:
            found: Iterable[bytes] = answer(environ, start_response)
        except Exception as error:
            log.error("a scrape failed: %s", one_line(error))
            start_response("500 Internal Server Error", [("Content-Type", "text/plain; charset=utf-8")])
            found = [f"{one_line(error)}\n".encode()]
        return found

    return application


def _version() -> str:
    try:
        return version("premoe")
    except PackageNotFoundError:
        return "unknown"
