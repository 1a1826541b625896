"""A mesh under mixed load for half an hour, while its expert store and Redis are killed and pattern sets change.

    make soak [ARGS="--minutes 30 --engine vllm --json FILE"]

The fixture model in 32 bits, so that answers do not depend on what else is in a batch. Clients ask on all paths of the
OpenAI API, known prompts and new ones, whole and as streams, go away in mid-answer, send what is refused, and set
deadlines. Exits with 1 and a line for each thing that nobody injected: an error that no death of the store explains
(``support.soak.verdict`` says which one does), an answer other than before the load, a call without an end, a process
that grew (``support.soak.footprint``: its bounds), a byte that changed in the worker, a traceback in a log.
Ctrl-C ends the load, checks and reports; a second one only stops everything.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
from _report import Report, json_option
from premoe_local.bench.run import until_interrupted
from premoe_local.console import interrupt_on_sigterm
from premoe_local.mesh import Mesh, running
from premoe_local.mesh_options import MeshOptions
from premoe_local.tasks import STORED
from support.ports import stable_port
from support.servers import redis_server
from support.soak.calls import CONTEXT, Call, known_calls
from support.soak.faults import Faults
from support.soak.footprint import MIB, Footprint, grown
from support.soak.ground import METRICS, Sets, pack_in_32_bits, profiled
from support.soak.run import Plan, Soak, opened

BUDGET, SEQUENCES, PROMPTS, EACH = "4/16", 8, 64, 4
CLIENTS = 12
HOST_BYTES = 4 << 20
"""Of expert blobs in the worker's host memory, a third of all: it needs the store again and again."""
LONGEST_WARM_UP_S, WARM_UP = 180.0, 0.25
SAY_S = 15.0


class Log:
    """Lines of all processes: tracebacks are kept."""

    def __init__(self) -> None:
        self.complaints: list[str] = []

    def __call__(self, name: str, line: str) -> None:
        if "Traceback" in line:
            self.complaints.append(f"{name} logged a traceback: {line[:200]}")


@click.command()
@click.option("--minutes", type=click.FloatRange(min=0.5), default=30.0, show_default=True, help="Of load.")
@click.option("--engine", type=click.Choice(["hf", "vllm"]), default="hf", show_default=True)
@click.option("--clients", type=click.IntRange(min=1), default=CLIENTS, show_default=True)
@click.option(
    "--tasks", "count", type=click.IntRange(1, len(STORED)), default=6, show_default=True, help="Stored ones."
)
@click.option("--seed", default=0, show_default=True, help="Of calls, faults and their times.")
@json_option
def main(minutes: float, engine: str, clients: int, count: int, seed: int, json_file: Path | None) -> None:
    """Load a mesh on this machine, break it now and then, and say what came of it."""
    interrupt_on_sigterm()
    names, settings = STORED[:count], {"minutes": minutes, "engine": engine, "clients": clients, "seed": seed}
    report = Report("soak", {**settings, "budget": BUDGET, "tasks": ", ".join(names)})
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="premoe-soak-")))
        say("packing and profiling the fixture")
        url = pack_in_32_bits(folder)
        sets = Sets(url, profiled(url, names, PROMPTS))
        sets.make(live=True)
        redis = stack.enter_context(redis_server(folder))
        # A store that is killed gets its port again.
        os.environ["PREMOE_EXPERT_STORE_PORT"] = str(stable_port())
        log, options = Log(), mesh_options(url, engine, redis.url)
        mesh = stack.enter_context(running(options, log=log, step=say))
        faults = Faults(mesh.store, redis)
        stack.callback(faults.close)
        plan = Plan(clients=clients, seed=seed)
        complaints = asyncio.run(soak(report, mesh, faults, sets, plan, 60 * minutes, known_calls(names, EACH)))
    complaints += log.complaints
    report.finish(json_file)
    for line in complaints:
        click.echo(line, err=True)
    if complaints:
        raise click.ClickException(f"{len(complaints)} things that nobody injected")


def mesh_options(url: str, engine: str, redis_url: str) -> MeshOptions:
    return MeshOptions(
        model=url,
        budget=BUDGET,
        allocation="uniform",
        threads=1,
        engine="vllm" if engine == "vllm" else "hf",
        engine_arguments='{"block_size": 32}' if engine == "vllm" else "",
        context_length=CONTEXT,
        max_sequences=SEQUENCES,
        host_memory_bytes=HOST_BYTES,
        redis_url=redis_url,
        log_level="warning",
    )


async def soak(
    report: Report, mesh: Mesh, faults: Faults, sets: Sets, plan: Plan, seconds: float, calls: Sequence[Call]
) -> list[str]:
    """The whole run. Returns its complaints."""
    warm_s = min(LONGEST_WARM_UP_S, WARM_UP * seconds)
    async with opened(mesh, faults, sets, calls) as run:
        say(f"asking {len(calls)} calls under {len(METRICS)} pattern sets before the load")
        await run.learn()
        if report.settings["engine"] == "vllm":
            await run.fill_caches()
        sizes: list[dict[str, Any]] = []
        telling = asyncio.create_task(_tell(run, seconds, sizes))
        began = time.monotonic()
        whole = await until_interrupted(run.load(plan, warm_s, part=0))
        before = await run.quiet()
        if whole:
            whole = await until_interrupted(run.load(plan, seconds - warm_s, part=1))
        after = await run.quiet()
        telling.cancel()
        found = run.found
        found.complaints += grown(before, after)
        report.values |= {
            "ran": "whole" if whole else f"to Ctrl-C, {(time.monotonic() - began) / 60:.1f} minutes",
            "calls": dict(found.counts),
            "answers compared": sum(one.answer is not None and one.call.name != "" for one in found.outcomes),
            "blobs swapped in": sum(one.answer.loaded for one in found.outcomes if one.answer),
            "ended and started again": dict(Counter(fault.victim for fault in faults.known)),
            "pattern sets": sets.made,
            "integrity checks": found.integrity_checks,
        }
        report.values |= {
            f"{name}, before and after": _sizes(before[name], after[name]) for name in before & after.keys()
        }
        report.values["faults"] = [
            {"victim": fault.victim, "at_s": fault.killed - began, "down_s": fault.again - fault.killed}
            for fault in faults.known
        ]
        report.values["sizes"] = sizes
        report.values["complaints"] = found.complaints
    return found.complaints


async def _tell(run: Soak, seconds: float, sizes: list[dict[str, Any]]) -> None:
    """How far it is, again and again; ``sizes`` are added to."""
    began = time.monotonic()
    while True:
        await asyncio.sleep(SAY_S)
        passed = time.monotonic() - began
        sizes.append({"at_s": round(passed, 1), **run.sizes()})
        counts = ", ".join(f"{count} {what}" for what, count in sorted(run.found.counts.items()))
        say(
            f"{passed / 60:.1f} of {seconds / 60:.1f} min, {max(0.0, seconds - passed) / 60:.1f} left: {counts}; "
            f"{len(run.faults.known)} kills, {len(run.found.complaints)} complaints"
        )


def _sizes(before: Footprint, after: Footprint) -> dict[str, Any]:
    """MiB that are its own, MiB shared, open files, threads."""
    return {
        "private_mib": [round(one.private / MIB, 1) for one in (before, after)],
        "shared_mib": [round(one.shared / MIB, 1) for one in (before, after)],
        "files": [before.files, after.files],
        "threads": [before.threads, after.threads],
    }


def say(text: str) -> None:
    click.echo(f"soak: {text}", err=True)


if __name__ == "__main__":
    main()
