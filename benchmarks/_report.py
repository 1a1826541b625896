"""What every benchmark prints: the machine, the load, the settings, the samples; as text and, if asked, as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

json_option = click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Also write the report as JSON."
)


def machine() -> dict[str, Any]:
    """Cores, memory, load and versions, as measured now."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(pages / 2**30, 1),
        "load": [round(value, 2) for value in os.getloadavg()],
        "python": platform.python_version(),
    }
    for name in ("torch", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    threads = {
        name: os.environ[name]
        for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GLIBC_TUNABLES")
        if name in os.environ
    }
    return found | threads


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def interleaved(variants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Run the variants round-robin, so that drift of the machine hits all of them alike. Seconds per variant."""
    samples: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds):
        names = list(variants)
        # Each variant follows each other one equally often.
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            samples[name].append(variants[name]())
    return samples


@dataclass
class Report:
    """Collects lines and values; ``finish`` prints them and writes the JSON file."""

    name: str
    settings: Mapping[str, Any]
    values: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=machine)

    def samples(self, name: str, seconds: Sequence[float], *, num_bytes: int | None = None) -> float:
        """Note the median (and the rate, if these seconds moved bytes). Returns the median."""
        median = statistics.median(seconds)
        entry: dict[str, Any] = {"median_s": median, "min_s": min(seconds), "max_s": max(seconds), "n": len(seconds)}
        if num_bytes is not None:
            entry["gb_per_s"] = num_bytes / median / 1e9
        self.values[name] = entry
        return median

    def finish(self, json_file: Path | None = None) -> None:
        self.machine["load_after"] = [round(value, 2) for value in os.getloadavg()]
        click.echo(f"# {self.name}")
        for title, content in (("machine", self.machine), ("settings", self.settings), ("values", self.values)):
            for key, value in content.items():
                click.echo(f"{title:9} {key:28} {_text(value)}")
        if json_file is not None:
            document = {"benchmark": self.name, "machine": self.machine, "settings": dict(self.settings)}
            temporary = json_file.with_suffix(".tmp")
            temporary.write_text(json.dumps(document | {"values": self.values}, indent=1, default=str) + "\n")
            temporary.replace(json_file)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "  ".join(f"{key} {_text(entry)}" for key, entry in value.items())
    return f"{value:.6g}" if isinstance(value, float) else str(value)
