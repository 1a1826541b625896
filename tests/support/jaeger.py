"""A real Jaeger with its traces in memory: send spans to it by OTLP, read traces back.

with running_jaeger(folder) as jaeger:
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": jaeger.otlp_endpoint}
    …
    spans = jaeger.wait_for_trace(trace_id, lambda spans: "decode" in {span.name for span in spans})
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from support.cluster_programs import cluster_program
from support.ports import stable_port
from support.process_group import ProcessEnded, ProcessGroup, wait_until

START_TIMEOUT_S = 60.0
ATTEMPTS = 3
_CONFIG = Path(__file__).parents[2] / "tools" / "jaeger" / "config.yaml"
_LISTENERS = ("QUERY_GRPC", "QUERY_HTTP", "HEALTH", "OTLP_GRPC", "OTLP_HTTP")


@dataclass(frozen=True, slots=True)
class StoredSpan:
    """One span as Jaeger has it; ids are hex, times microseconds. ``resource`` describes the process it came from."""

    name: str
    service: str
    trace_id: str
    span_id: str
    parent_id: str
    start_us: int
    duration_us: int
    attributes: dict[str, Any] = field(hash=False)
    resource: dict[str, Any] = field(hash=False)


class Jaeger:
    """A running Jaeger. Thread-safe."""

    def __init__(self, addresses: dict[str, str], group: ProcessGroup) -> None:
        self._addresses = addresses
        self._group = group

    @property
    def otlp_endpoint(self) -> str:
        """For OTEL_EXPORTER_OTLP_PROTOCOL=grpc."""
        return f"http://{self._addresses['OTLP_GRPC']}"

    @property
    def otlp_http_endpoint(self) -> str:
        """For http/protobuf."""
        return f"http://{self._addresses['OTLP_HTTP']}"

    @property
    def query_url(self) -> str:
        return f"http://{self._addresses['QUERY_HTTP']}"

    def services(self) -> list[str]:
        """Names of the services that sent spans."""
        found = self._get("/api/services").raise_for_status().json()["data"] or []
        return sorted(map(str, found))

    def trace(self, trace_id: str) -> list[StoredSpan]:
        """The spans of a trace (32 hex digits) by their start; empty while Jaeger does not know it."""
        answer = self._get(f"/api/traces/{trace_id}")
        if answer.status_code == 404:
            return []
        return [span for trace in answer.raise_for_status().json()["data"] for span in _spans(trace)]

    def wait_for_trace(
        self, trace_id: str, complete: Callable[[Sequence[StoredSpan]], bool] = bool, timeout_s: float = 30.0
    ) -> list[StoredSpan]:
        """Wait until the spans of a trace satisfy ``complete``, by default until there is one. Raises TimeoutError."""
        spans: list[StoredSpan] = []

        def read() -> bool:
            spans[:] = self.trace(trace_id)
            return complete(spans)

        try:
            wait_until(read, timeout_s, f"trace {trace_id}", self._group, ["jaeger"])
        except TimeoutError as error:
            raise TimeoutError(f"{error}\nspans so far: {[(span.service, span.name) for span in spans]}") from None
        return spans

    def healthy(self) -> bool:
        try:
            return httpx.get(f"http://{self._addresses['HEALTH']}/status", timeout=2.0, trust_env=False).is_success
        except httpx.HTTPError:
            return False

    def _get(self, path: str) -> httpx.Response:
        return httpx.get(self.query_url + path, timeout=10.0, trust_env=False)


@contextmanager
def running_jaeger(folder: Path, *, host: str = "127.0.0.1") -> Iterator[Jaeger]:
    """Start Jaeger with its log in ``folder``; its traces are gone at the end.

    Raises ClusterMissing where it is not built, ProcessEnded or TimeoutError with the end of its log.
    """
    command = [cluster_program("jaeger"), f"--config={_CONFIG}"]
    for attempt in range(ATTEMPTS):
        addresses = {name: f"{host}:{stable_port(host)}" for name in _LISTENERS}
        with ProcessGroup(folder / f"logs-{attempt}") as group:
            group.start("jaeger", command, {f"JAEGER_{name}": address for name, address in addresses.items()})
            jaeger = Jaeger(addresses, group)
            try:
                wait_until(jaeger.healthy, START_TIMEOUT_S, "Jaeger", group, ["jaeger"])
            except ProcessEnded as error:
                if "address already in use" in str(error) and attempt + 1 < ATTEMPTS:
                    continue
                raise
            try:
                yield jaeger
            finally:
                # Its traces are in memory, so there is nothing to save, and an orderly end takes ten seconds.
                group.stop("jaeger", signal.SIGKILL)
            return


def _spans(trace: dict[str, Any]) -> list[StoredSpan]:
    processes = trace["processes"]
    found = [
        StoredSpan(
            name=span["operationName"],
            service=processes[span["processID"]]["serviceName"],
            trace_id=span["traceID"],
            span_id=span["spanID"],
            parent_id=next((one["spanID"] for one in span["references"] if one["refType"] == "CHILD_OF"), ""),
            start_us=span["startTime"],
            duration_us=span["duration"],
            attributes=_values(span["tags"]),
            resource=_values(processes[span["processID"]]["tags"]),
        )
        for span in trace["spans"]
    ]
    return sorted(found, key=lambda span: span.start_us)


def _values(tags: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {tag["key"]: tag["value"] for tag in tags}
