"""What the retrieval service counts. Tasks are those of stored patterns."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from premoe_servicekit.metrics import Few, Metrics, exemplar

from premoe_runtime.formats.recognition import Decision

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)


class RetrievalMetrics:
    """Queries, decisions and what was searched."""

    def __init__(self, metrics: Metrics) -> None:
        self._seconds = metrics.histogram(
            "retrieval_seconds", "From a signature to its decision; failed queries count too.", buckets=_SECONDS
        )
        self._failed = metrics.counter("retrieval_failures", "Queries that got no decision.")
        self._decisions = metrics.counter(
            "decisions",
            "Decisions by kind and task: the one recognised or, of an abstention (not specialist), the nearest.",
            ("decision", "task"),
        )
        self._exemplars = metrics.gauge("retrieval_exemplars", "Exemplars of the pattern set searched last.")
        self._stale = metrics.gauge(
            "retrieval_stale_sets", "Live pattern sets whose weights no pack in the object store has any more."
        )
        self._tasks = Few()

    @contextmanager
    def query(self) -> Iterator[None]:
        """Times the block."""
        began = time.perf_counter()
        try:
            yield
        except Exception:
            self._failed.inc()
            raise
        finally:
            self._seconds.observe(time.perf_counter() - began, exemplar())

    def decided(self, decision: Decision, exemplars: int) -> None:
        self._decisions.labels(decision.kind, self._tasks(decision.task)).inc()
        self._exemplars.set(exemplars)

    def found_stale(self, sets: int) -> None:
        self._stale.set(sets)
