"""Probe and retrieve as a share of the time to the first token, through the whole mesh.

Three kinds of request, round-robin: the task of the request before (nothing to swap), another task (a swap), and the
task of the request before with its pattern named by the caller (no probe, no retrieval). The clock is the client's,
from sending the request to the first text of the stream; the parts are those that the answer reports.
"""

from __future__ import annotations

import json
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import click
from _report import Report, json_option
from premoe_local import tasks
from premoe_local.demo.prepare import pack_fixture, prepare
from premoe_local.mesh import Mesh, running
from premoe_local.mesh_options import MeshOptions

FIXTURE = Path(__file__).parents[1] / "tests" / "fixtures" / "tiny-moe"
KINDS = ("resident", "swapped", "named")
TASKS = ("add", "json")


@dataclass(frozen=True, slots=True)
class Sample:
    """One request, in seconds. ``recognise_s``: probe and retrieve as the gateway timed them."""

    first_token_s: float
    recognise_s: float
    swap_s: float
    recognised: bool


@click.command()
@click.option(
    "--fixture", type=click.Path(path_type=Path), default=FIXTURE, help="Checkpoint folder to pack and profile."
)
@click.option("--budget", default="4/16", show_default=True)
@click.option("--rounds", type=click.IntRange(2), default=20, show_default=True, help="Requests of each kind.")
@json_option
def main(fixture: Path, budget: str, rounds: int, json_file: Path | None) -> None:
    """Measure on the fixture model."""
    with ExitStack() as stack:
        work = stack.enter_context(tempfile.TemporaryDirectory(prefix="premoe-first-token-"))
        url = f"file://{work}/store"
        pack_fixture(fixture, url)
        prepare(url, lambda text, share: None)
        options = MeshOptions(model=url, budget=budget, threads=1, context_length=512, log_level="warning")
        mesh = stack.enter_context(running(options))
        samples = _measure(mesh, rounds)
    report = Report("time to first token", {"budget": budget, "rounds": rounds, "model": fixture.name})
    for kind, found in samples.items():
        first = report.samples(f"{kind}: first token", [sample.first_token_s for sample in found])
        report.values[f"{kind}: recognised"] = f"{sum(sample.recognised for sample in found)} of {len(found)}"
        report.samples(f"{kind}: swap", [sample.swap_s for sample in found])
        if kind != "named":
            recognise = report.samples(f"{kind}: probe + retrieve", [sample.recognise_s for sample in found])
            report.values[f"{kind}: share of probe + retrieve"] = recognise / first
    report.finish(json_file)


def _measure(mesh: Mesh, rounds: int) -> dict[str, list[Sample]]:
    prompts = {task: tasks.examples(task, "calibration", 4 * rounds + 8, seed=1) for task in TASKS}
    position = dict.fromkeys(TASKS, 0)

    def send(task: str, *, named: bool = False) -> Sample:
        position[task] += 1
        return _send(mesh, prompts[task][position[task]].prompt, task if named else "")

    samples: dict[str, list[Sample]] = {kind: [] for kind in KINDS}
    for task in (*TASKS, *TASKS):
        send(task)
    for turn in range(rounds):
        task = TASKS[turn % 2]  # the last round ended with the other one
        samples["swapped"].append(send(task))
        samples["resident"].append(send(task))
        samples["named"].append(send(task, named=True))
    return samples


def _send(mesh: Mesh, prompt: str, pattern: str) -> Sample:
    body: dict[str, object] = {
        "model": mesh.model_name,
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": 4,
        "stream": True,
    }
    if pattern:
        body["pattern"] = pattern
    request = urllib.request.Request(
        f"{mesh.url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    first = 0.0
    started = time.perf_counter()
    with urllib.request.urlopen(request, timeout=120) as response:
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line.removeprefix(b"data: "))
            if "premoe" in chunk:
                record = chunk["premoe"]
                recognise = ((record["probe_ms"] or 0.0) + (record["retrieve_ms"] or 0.0)) / 1e3
                end = first or time.perf_counter() - started
                swap = record["swap"]["milliseconds"] / 1e3
                return Sample(end, recognise, swap, record["decision"] == "specialist")
            if not first and chunk["choices"][0]["delta"].get("content"):
                first = time.perf_counter() - started
    raise RuntimeError("the stream ended without its last chunk")


if __name__ == "__main__":
    main()
