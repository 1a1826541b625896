"""What recognising a prompt's task costs and decides: the indexes alone, and `premoe up` under eight clients.

    python benchmarks/retrieval.py [--qdrant-url http://127.0.0.1:6333] [--only indexes|mesh] [--json FILE]

The indexes hold tasks of random unit vectors, each around a direction of its own; a query is what the service asks for
one prompt (the 5 nearest exemplars of every task) with its decision. Every other query is drawn around a task, and
should be recognised as it, the others at random, and should be unknown; every fifth decision is compared with brute
force. The mesh serves the fixture model with a live set of 2,000
exemplars, its own ones repeated with noise; the clients send prompts of the stored tasks in a closed loop and want one
token. CPU seconds are the retrieval process's, by psutil: they tell more than the clock's on a machine that is shared.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import threading
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import psutil
from _report import Report, json_option
from premoe_local import tasks
from premoe_local.demo.prepare import pack_fixture, prepare
from premoe_local.mesh import Mesh, running
from premoe_local.mesh_options import MeshOptions
from premoe_retrieval.cli import open_index
from premoe_retrieval.ports import PatternIndex
from premoe_retrieval.settings import RetrievalSettings

from premoe_runtime.formats.arrays import F32
from premoe_runtime.formats.pattern_set import Member, PatternSet, SetDocument, set_paths
from premoe_runtime.formats.recognition import decide, recognise
from premoe_runtime.formats.signature import SignatureSpec, unit
from premoe_runtime.offline.patterns.library import live_set_id, put_set
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.storage import Store, open_store

FIXTURE = Path(__file__).parents[1] / "tests" / "fixtures" / "tiny-moe"
MESH_EXEMPLARS = 2000
SIZES = (200, 2000, 10_000, 100_000)
CUTOFF = 0.5
"""Between the scores of queries around a task and those of random ones, which hardly overlap."""


@click.command()
@click.option("--fixture", type=click.Path(path_type=Path), default=FIXTURE, help="Checkpoint folder of the mesh.")
@click.option("--dimension", type=click.IntRange(8), default=128, show_default=True, help="Values of a signature.")
@click.option("--tasks", "num_tasks", type=click.IntRange(1), default=8, show_default=True, help="In each index.")
@click.option("--sizes", type=click.IntRange(1), multiple=True, default=SIZES, help="Exemplars in all, repeatable.")
@click.option("--queries", type=click.IntRange(10), default=500, show_default=True, help="Of each index.")
@click.option("--seconds", type=click.FloatRange(1), default=20.0, show_default=True, help="Of load on the mesh.")
@click.option("--clients", type=click.IntRange(1), default=8, show_default=True, help="Of the mesh.")
@click.option("--qdrant-url", default="", help="Measure this Qdrant server too.")
@click.option("--only", type=click.Choice(["indexes", "mesh"]), help="One half.")
@json_option
def main(
    fixture: Path,
    dimension: int,
    num_tasks: int,
    sizes: tuple[int, ...],
    queries: int,
    seconds: float,
    clients: int,
    qdrant_url: str,
    only: str | None,
    json_file: Path | None,
) -> None:
    """Measure."""
    settings = {
        "dimension": dimension,
        "tasks": num_tasks,
        "queries": queries,
        "clients": clients,
        "model": fixture.name,
    }
    report = Report("retrieval", settings)
    if only != "mesh":
        asyncio.run(_measure_indexes(report, Shape(dimension, num_tasks, sizes), queries, qdrant_url))
    if only != "indexes":
        with ExitStack() as stack:
            url = f"file://{stack.enter_context(tempfile.TemporaryDirectory(prefix='premoe-retrieval-'))}/store"
            pack_fixture(fixture, url)
            prepare(url, lambda text, share: None)
            _enlarge_live_set(open_store(url), open_pack(url).manifest().weights_id)
            options = MeshOptions(model=url, budget="4/16", threads=1, context_length=512, log_level="warning")
            _measure_mesh(report, stack.enter_context(running(options)), clients, seconds)
    report.finish(json_file)


@dataclass(frozen=True, slots=True)
class Shape:
    """What the indexes hold."""

    dimension: int
    tasks: int
    sizes: tuple[int, ...]


async def _measure_indexes(report: Report, shape: Shape, queries: int, qdrant_url: str) -> None:
    kinds = {
        "matrix": RetrievalSettings(store_url="memory://x", index="memory"),
        "engine in process": RetrievalSettings(store_url="memory://x"),
    }
    if qdrant_url:
        kinds["server"] = RetrievalSettings(store_url="memory://x", qdrant=qdrant_url)
    for size in shape.sizes:
        stored, centres = _random_set(size, shape)
        store = open_store("memory://sets")
        for path, data in zip(set_paths(stored.set_id), stored.to_files(), strict=True):
            store.put(path, data)
        started = time.perf_counter()
        PatternSet.load(store.get, stored.set_id)
        report.values[f"{size}: read and check the set"] = time.perf_counter() - started
        for kind, settings in kinds.items():
            index = open_index(settings)
            try:
                await _measure_index(report, f"{kind}, {size}", index, stored, centres, queries)
            finally:
                await index.close()


async def _measure_index(
    report: Report, name: str, index: PatternIndex, stored: PatternSet, centres: F32, queries: int
) -> None:
    draw = np.random.default_rng(1)
    set_id = stored.set_id
    wall, cpu = time.perf_counter(), time.process_time()
    await index.publish(set_id, stored)
    report.values[f"{name}: publish"] = time.perf_counter() - wall
    report.values[f"{name}: CPU of publish"] = time.process_time() - cpu
    wanted = {member.pattern_id: stored.document.neighbours for member in stored.specialists}
    walls, cpus, right, same = [], [], 0, []
    for number in range(queries + 10):
        task = int(draw.integers(len(centres))) if number % 2 else None
        signature = unit(
            (draw.normal(size=stored.dimension) + (0 if task is None else centres[task])).astype(np.float32)
        )
        wall, cpu = time.perf_counter(), time.process_time()
        decision = decide(await index.query(set_id, stored.embed(signature), wanted), stored)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
        right += (decision.task if decision.recognised else None) == (None if task is None else f"t{task}")
        if number % 10 < 2:
            exact = recognise(stored, signature)
            same.append((decision.kind, decision.task) == (exact.kind, exact.task))
    report.values[f"{name}: decided right"] = f"{right} of {queries + 10}"
    report.values[f"{name}: as brute force"] = f"{sum(same)} of {len(same)}"
    _note(report, f"{name}: query", walls[10:])
    _note(report, f"{name}: CPU of a query", cpus[10:])
    await index.delete(set_id)


def _note(report: Report, name: str, seconds: Sequence[float]) -> None:
    report.samples(name, seconds)
    report.values[name]["p95_s"] = float(np.percentile(seconds, 95))


def _random_set(size: int, shape: Shape) -> tuple[PatternSet, F32]:
    """``size`` exemplars of tasks around random directions, and the directions f32[T, D]."""
    draw = np.random.default_rng(0)
    each = size // shape.tasks
    centres = draw.normal(size=(shape.tasks, shape.dimension)).astype(np.float32)
    rows = np.repeat(centres, each, axis=0)
    members = tuple(
        Member(
            pattern_id=f"{task:064x}", task=f"t{task}", kind="specialist", cutoff=CUTOFF, first_exemplar=task * each,
            exemplars=each,
        )
        for task in range(shape.tasks)
    )  # fmt: skip
    document = SetDocument(
        weights_id="ab" * 32,
        metric="peu",
        semantics="selection",
        signature=SignatureSpec(dimension=shape.dimension),
        quantile=0.01,
        members=members,
        on_unknown="reject",
        exemplars_digest="",
    )
    return PatternSet.make(document, unit((rows + draw.normal(size=rows.shape)).astype(np.float32))), centres


def _enlarge_live_set(store: Store, weights_id: str) -> None:
    """Make a set live that is the live one with 2,000 exemplars, each task's own ones repeated with a little noise."""
    live_id = live_set_id(store, weights_id)
    assert live_id is not None
    live = PatternSet.load(store.get, live_id)
    draw = np.random.default_rng(0)
    each = MESH_EXEMPLARS // len(live.specialists)
    rows: list[F32] = []
    members = []
    for member in live.members:
        if member.kind == "specialist":
            found = np.resize(live.exemplars_of(member), (each, live.dimension))
            members.append(member.model_copy(update={"first_exemplar": len(rows) * each, "exemplars": each}))
            rows.append(unit((found + draw.normal(scale=1e-3, size=found.shape)).astype(np.float32)))
        else:
            members.append(member)
    document = live.document.model_copy(update={"members": tuple(members)})
    enlarged = PatternSet.make(document, np.concatenate(rows), live.splits, live.space)
    put_set(store, enlarged, live=True)


@dataclass(frozen=True, slots=True)
class Answer:
    """One request, in seconds. ``retrieve_s``: as the gateway timed it."""

    total_s: float
    retrieve_s: float
    recognised: bool


def _measure_mesh(report: Report, mesh: Mesh, clients: int, seconds: float) -> None:
    prompts = [example.prompt for task in tasks.STORED for example in tasks.examples(task, "calibration", 32, seed=1)]
    for prompt in prompts[::16]:
        _send(mesh, prompt)
    for count in (1, clients):
        process = psutil.Process(mesh.retrieval.pid)
        before, started = sum(process.cpu_times()[:2]), time.perf_counter()
        answers = _load(mesh, prompts, count, seconds)
        wall, cpu = time.perf_counter() - started, sum(process.cpu_times()[:2]) - before
        name = f"mesh, {count} clients"
        report.values[f"{name}: requests per second"] = len(answers) / wall
        report.values[f"{name}: recognised"] = f"{sum(answer.recognised for answer in answers)} of {len(answers)}"
        report.values[f"{name}: CPU of retrieval per request"] = cpu / len(answers)
        _note(report, f"{name}: request", [answer.total_s for answer in answers])
        _note(report, f"{name}: retrieve as the gateway sees it", [answer.retrieve_s for answer in answers])


def _load(mesh: Mesh, prompts: Sequence[str], clients: int, seconds: float) -> list[Answer]:
    """Closed loop: every client sends its next prompt when it has its answer."""
    answers: list[Answer] = []
    until = time.perf_counter() + seconds

    def client(number: int) -> None:
        draw = np.random.default_rng(number)
        while time.perf_counter() < until:
            answers.append(_send(mesh, prompts[int(draw.integers(len(prompts)))]))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def _send(mesh: Mesh, prompt: str) -> Answer:
    body = {
        "model": mesh.model_name,
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": 1,
    }
    request = urllib.request.Request(
        f"{mesh.url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    started = time.perf_counter()
    with urllib.request.urlopen(request, timeout=120) as response:
        record = json.load(response)["premoe"]
    return Answer(time.perf_counter() - started, record["retrieve_ms"] / 1e3, record["decision"] == "specialist")


if __name__ == "__main__":
    main()
