"""What an expert store counts: where bytes came from, what the cache had, what failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from premoe_servicekit.metrics import COUNTER, GAUGE, Few, Metric, Metrics

from premoe_expert_store.cache import NodeCache
from premoe_runtime.formats.errors import CorruptData, PremoeError

BREAKER = Metric("store_cache_skipped", GAUGE, "1 while the cache is left alone after a failure, 0 while it is asked.")

CONNECTIONS = Metric("store_http_connections", GAUGE, "Open connections of the byte server.")

NODE_BYTES = Metric("store_node_bytes", GAUGE, "Bytes of experts in the node's cache, of all stores that share it.")
NODE_LIMIT = Metric("store_node_limit_bytes", GAUGE, "Bytes that may lie there.")
NODE_AGE = Metric("store_node_age_seconds", GAUGE, "Seconds since the expert there was used that was not for longest.")
NODE_EVICTED = Metric("store_node_evicted", COUNTER, "Experts that this store dropped from there to make room.")
TIERS = ("node", "redis", "peer", "object")


class StoreMetrics:
    """Blobs that several callers share are counted once, as they are read."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._bytes = metrics.counter(
            "store_read_bytes",
            "Bytes of experts read, by where: the Redis cache, another replica (peer) or object storage.",
            ("source",),
        )
        self._queries = metrics.counter("store_cache_queries", "Experts that the cache was asked for.")
        self._hits = metrics.counter("store_cache_hits", "Those that it had whole.")
        self._blobs = metrics.counter(
            "store_blobs", "Experts brought or found, by the farthest tier that bytes came from.", ("tier",)
        )
        self._wrong = metrics.counter(
            "store_wrong_copies", "Copies of experts that were wrong, and dropped where they lay, by tier.", ("tier",)
        )
        self._sent = metrics.counter("store_sent_bytes", "Bytes of experts and files sent to workers.")
        self._resolved = metrics.counter("store_resolved_blobs", "Experts whose sources Resolve named.")
        self._answers = metrics.counter("store_http_answers", "Answers of the byte server, by status code.", ("code",))
        self._errors = metrics.counter(
            "store_errors", "Calls that failed, by kind of error and its reason.", ("kind", "reason")
        )
        for tier in TIERS:
            self._blobs.labels(tier)
            self._wrong.labels(tier)
        self._reasons = Few()
        for reason in ("CORRUPT_DATA", "DIGEST_MISMATCH"):
            # There from the start, so that the first one is an increase: somebody is woken by it.
            self._errors.labels(CorruptData.__name__, reason)

    def show(self, available: Callable[[], bool]) -> None:
        """Tell from now on whether the cache is asked."""
        self._metrics.on_demand((BREAKER,), lambda: [(BREAKER.name, (), float(not available()))])

    def show_node(self, cache: NodeCache) -> None:
        """Tell from now on how full the node's cache is, and how long blobs stay there."""
        self._metrics.on_demand(
            (NODE_BYTES, NODE_LIMIT, NODE_AGE, NODE_EVICTED),
            lambda: [
                (NODE_BYTES.name, (), float(cache.num_bytes)),
                (NODE_LIMIT.name, (), float(cache.limit_bytes)),
                (NODE_AGE.name, (), cache.age_s),
                (NODE_EVICTED.name, (), float(cache.evicted)),
            ],
        )

    def asked_cache(self, *, blobs: int, hits: int, num_bytes: int) -> None:
        self._queries.inc(blobs)
        self._hits.inc(hits)
        self._bytes.labels("cache").inc(num_bytes)

    def read_peer(self, num_bytes: int) -> None:
        self._bytes.labels("peer").inc(num_bytes)

    def read_objects(self, num_bytes: int) -> None:
        self._bytes.labels("object").inc(num_bytes)

    def handed_out(self, tier: str) -> None:
        self._blobs.labels(tier).inc()

    def wrong_copy(self, tier: str) -> None:
        self._wrong.labels(tier).inc()

    def sent(self, num_bytes: int) -> None:
        self._sent.inc(num_bytes)

    def resolved(self, blobs: int) -> None:
        self._resolved.inc(blobs)

    def answered(self, code: int, num_bytes: int) -> None:
        """A request to the byte server; ``num_bytes`` of a blob were sent."""
        self._answers.labels(str(code)).inc()
        self._sent.inc(num_bytes)

    def show_connections(self, count: Callable[[], int]) -> None:
        """Tell from now on how many connections the byte server has."""
        self._metrics.on_demand((CONNECTIONS,), lambda: [(CONNECTIONS.name, (), float(count()))])

    @contextmanager
    def call(self) -> Iterator[None]:
        """Counts what the block raises."""
        try:
            yield
        except PremoeError as error:
            self._errors.labels(type(error).__name__, self._reasons(error.reason)).inc()
            raise
        except Exception:
            self._errors.labels(PremoeError.__name__, PremoeError.default_reason).inc()
            raise
