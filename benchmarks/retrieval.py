"""What recognising a prompt's task costs: the indexes alone, and the whole of `premoe up` under eight clients.

    python benchmarks/retrieval.py [--qdrant-url http://127.0.0.1:6333] [--only indexes|mesh] [--json FILE]

The indexes hold 8 tasks of random unit vectors around 8 directions; a query is what the service asks for one prompt
(the 5 nearest exemplars of every task) with its decision. The mesh serves the fixture model with a live set of 2,000
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
from premoe_local.mesh import Mesh, MeshOptions, running
from premoe_retrieval.cli import open_index
from premoe_retrieval.ports import PatternIndex
from premoe_retrieval.settings import RetrievalSettings

from premoe_runtime.formats.arrays import F32
from premoe_runtime.formats.pattern_set import Member, PatternSet, SetDocument
from premoe_runtime.formats.recognition import decide
from premoe_runtime.formats.signature import SignatureSpec, unit
from premoe_runtime.offline.patterns.library import live_set_id, put_set
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.storage import Store, open_store

FIXTURE = Path(__file__).parents[1] / "tests" / "fixtures" / "tiny-moe"
TASKS, MESH_EXEMPLARS = 8, 2000
SIZES = (200, 2000, 10_000)


@click.command()
@click.option("--fixture", type=click.Path(path_type=Path), default=FIXTURE, help="Checkpoint folder of the mesh.")
@click.option("--dimension", type=click.IntRange(TASKS), default=128, show_default=True, help="Values of a signature.")
@click.option("--queries", type=click.IntRange(10), default=500, show_default=True, help="Of each index.")
@click.option("--seconds", type=click.FloatRange(1), default=20.0, show_default=True, help="Of load on the mesh.")
@click.option("--clients", type=click.IntRange(1), default=8, show_default=True, help="Of the mesh.")
@click.option("--qdrant-url", default="", help="Measure this Qdrant server too.")
@click.option("--only", type=click.Choice(["indexes", "mesh"]), help="One half.")
@json_option
def main(
    fixture: Path,
    dimension: int,
    queries: int,
    seconds: float,
    clients: int,
    qdrant_url: str,
    only: str | None,
    json_file: Path | None,
) -> None:
    """Measure."""
    settings = {"dimension": dimension, "tasks": TASKS, "queries": queries, "clients": clients, "model": fixture.name}
    report = Report("retrieval", settings)
    if only != "mesh":
        asyncio.run(_measure_indexes(report, dimension, queries, qdrant_url))
    if only != "indexes":
        with ExitStack() as stack:
            url = f"file://{stack.enter_context(tempfile.TemporaryDirectory(prefix='premoe-retrieval-'))}/store"
            pack_fixture(fixture, url)
            prepare(url, lambda text, share: None)
            _enlarge_live_set(open_store(url), open_pack(url).manifest().weights_id)
            options = MeshOptions(model=url, budget="4/16", threads=1, context_length=512, log_level="warning")
            _measure_mesh(report, stack.enter_context(running(options)), clients, seconds)
    report.finish(json_file)


async def _measure_indexes(report: Report, dimension: int, queries: int, qdrant_url: str) -> None:
    kinds = {
        "matrix": RetrievalSettings(store_url="memory://x", index="memory"),
        "engine in process": RetrievalSettings(store_url="memory://x"),
    }
    if qdrant_url:
        kinds["server"] = RetrievalSettings(store_url="memory://x", qdrant=qdrant_url)
    for kind, settings in kinds.items():
        for size in SIZES:
            index = open_index(settings)
            try:
                await _measure_index(report, f"{kind}, {size}", index, _random_set(size, dimension), queries)
            finally:
                await index.close()


async def _measure_index(report: Report, name: str, index: PatternIndex, stored: PatternSet, queries: int) -> None:
    draw = np.random.default_rng(1)
    set_id = stored.set_id
    started = time.perf_counter()
    await index.publish(set_id, stored)
    report.values[f"{name}: publish"] = time.perf_counter() - started
    wanted = {member.pattern_id: stored.document.neighbours for member in stored.specialists}
    walls, cpus = [], []
    for _ in range(queries + 10):
        signature = unit(draw.normal(size=stored.dimension).astype(np.float32))
        wall, cpu = time.perf_counter(), time.process_time()
        decide(await index.query(set_id, stored.embed(signature), wanted), stored)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    _note(report, f"{name}: query", walls[10:])
    _note(report, f"{name}: CPU of a query", cpus[10:])
    await index.delete(set_id)


def _note(report: Report, name: str, seconds: Sequence[float]) -> None:
    report.samples(name, seconds)
    report.values[name]["p95_s"] = float(np.percentile(seconds, 95))


def _random_set(size: int, dimension: int) -> PatternSet:
    """``size`` exemplars of 8 tasks around random directions."""
    draw = np.random.default_rng(0)
    each = size // TASKS
    centres = np.repeat(draw.normal(size=(TASKS, dimension)), each, axis=0)
    members = tuple(
        Member(
            pattern_id=f"{task:064x}", task=f"t{task}", kind="specialist", cutoff=0.9, first_exemplar=task * each,
            exemplars=each,
        )
        for task in range(TASKS)
    )  # fmt: skip
    document = SetDocument(
        weights_id="ab" * 32,
        metric="peu",
        semantics="selection",
        signature=SignatureSpec(dimension=dimension),
        quantile=0.01,
        members=members,
        on_unknown="reject",
        exemplars_digest="",
    )
    return PatternSet.make(document, unit((centres + draw.normal(size=centres.shape)).astype(np.float32)))


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
    enlarged = PatternSet.make(document, np.concatenate(rows), live.splits)
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
