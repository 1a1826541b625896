"""Writes docs/reference/metrics.md: every metric of every process, from the classes that count.

python tools/metrics_page.py            write it
python tools/metrics_page.py --check    fail when it is stale, naming the command that mends it
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from premoe_expert_store.metrics import StoreMetrics
from premoe_gateway.metrics import GatewayMetrics
from premoe_operator.run.metrics import Metrics as OperatorMetrics
from premoe_retrieval.metrics import RetrievalMetrics
from premoe_servicekit.metrics import COUNTER, GAUGE, Metric, Metrics
from premoe_worker.metrics import WorkerMetrics

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "metrics.md"
HEAD = """# Metrics

Made by `python tools/metrics_page.py` from the code; a test compares it with what a running mesh exports. Every process
serves its metrics as plain HTTP on `--metrics-port` (`PREMOE_<PROCESS>_METRICS_PORT`; 50054 in the chart, free ports
with `premoe up --metrics`), in Prometheus' text format, or in OpenMetrics for who asks for it: then histograms of
requests carry the trace id of one of them as an exemplar. A histogram `x` is read as `x_bucket`, `x_sum` and `x_count`.

Names are those of vLLM with `premoe` for `vllm` where both have the same thing. Tasks are named as stored patterns are;
what a client sends is never a label. A value that nobody can tell in time is left out of a scrape, and the others are
there.
"""
PROCESS = (
    Metric("process_cpu_seconds", COUNTER, "CPU time, user and system."),
    Metric("process_resident_memory_bytes", GAUGE, "Resident memory."),
    Metric("process_virtual_memory_bytes", GAUGE, "Virtual memory."),
    Metric("process_open_fds", GAUGE, "Open files and sockets."),
    Metric("process_max_fds", GAUGE, "Most that may be open."),
    Metric("process_start_time_seconds", GAUGE, "Start of the process, seconds since 1970."),
)
"""prometheus-client's own, which it names but does not list."""


def every_process() -> Metrics:
    metrics = Metrics()
    metrics.add_process()
    return metrics


def worker() -> Metrics:
    metrics = Metrics()
    shown = WorkerMetrics(metrics)
    shown.show(cast(Any, None))
    shown.show_fetches(cast(Any, None), cast(Any, None))
    return metrics


def gateway() -> Metrics:
    metrics = Metrics()
    gateway = GatewayMetrics(metrics, ())
    gateway.show(cast(Any, None))
    gateway.show_keys(cast(Any, None))
    return metrics


def retrieval() -> Metrics:
    metrics = Metrics()
    RetrievalMetrics(metrics)
    return metrics


def store() -> Metrics:
    metrics = Metrics()
    store = StoreMetrics(metrics)
    store.show_node(cast(Any, None))
    store.show_connections(lambda: 0)
    store.show(lambda: True)
    return metrics


def operator() -> Metrics:
    metrics = OperatorMetrics()
    metrics.show(dict, dict, int)
    return metrics


SECTIONS: Mapping[str, Callable[[], Metrics]] = {
    "Every process but the operator": every_process,
    "Worker": worker,
    "Gateway": gateway,
    "Retrieval": retrieval,
    "Expert store": store,
    "Operator": operator,
}


def listed(title: str) -> dict[str, Metric]:
    """What is in a section, by the name under which it is exported, without a counter's `_total`."""
    metrics = SECTIONS[title]()
    own = {metrics.prefix + metric.name: metric for metric in metrics.listed}
    return {**own, **({metric.name: metric for metric in PROCESS} if SECTIONS[title] is every_process else {})}


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for title in SECTIONS:
        parts += [f"## {title}", "", "| metric | type | labels | meaning |", "|---|---|---|---|"]
        parts += [row(name, metric) for name, metric in listed(title).items()]
        parts.append("")
    return "\n".join(parts)


def row(name: str, metric: Metric) -> str:
    full = f"{name}_total" if metric.kind == COUNTER else name
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{full}` | {metric.kind} | {labels} | {metric.help} |"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the page of all metrics.")
    parser.add_argument("--check", action="store_true", help="only say whether it is up to date")
    options = parser.parse_args(arguments)
    wanted = page()
    if PAGE.exists() and PAGE.read_text() == wanted:
        return 0
    if options.check:
        print("docs/reference/metrics.md is stale; run: python tools/metrics_page.py", file=sys.stderr)
        return 1
    PAGE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
