"""The engine in threads of the worker's process against the engine in a process of its own, under load.

    python benchmarks/engine_process.py [--clients 8 --rounds 5] [--json FILE]

Two whole meshes over one model stand side by side, one worker each, and are loaded in turn, never together.
Clients are gRPC streams to the worker; each asks for one task after the other, so that patterns are swapped while other
sequences decode. Ratios are process over thread: above 1 is better for rates, below 1 for times.
"""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import click
import numpy as np
from _report import Report, json_option
from premoe.patterns.v1 import patterns_pb2
from premoe.worker.v1 import worker_pb2, worker_pb2_grpc
from premoe_local.demo.prepare import pack_fixture, prepare
from premoe_local.mesh import Mesh, running
from premoe_local.mesh_options import MeshOptions
from premoe_servicekit.clients import channel

FIXTURE = Path(__file__).parents[1] / "tests" / "fixtures" / "tiny-moe"
PLACES = ("thread", "process")
MOST_TASKS = 3


@dataclass
class Sample:
    """One round of one mesh. Times in seconds."""

    tokens: int = 0
    wall_s: float = 0.0
    swaps: int = 0
    first_s: list[float] = field(default_factory=list)
    between_s: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        return {
            "tokens_per_s": self.tokens / self.wall_s,
            "between_p50_s": float(np.percentile(self.between_s, 50)),
            "between_p95_s": float(np.percentile(self.between_s, 95)),
            "first_p50_s": float(np.percentile(self.first_s, 50)),
            "first_p95_s": float(np.percentile(self.first_s, 95)),
            "swaps": self.swaps,
        }


@click.command()
@click.option("--clients", default=8, show_default=True, help="Streams at once.")
@click.option("--requests", default=6, show_default=True, help="Requests of a client in a round, one after the other.")
@click.option("--tokens", default=48, show_default=True, help="Tokens asked for.")
@click.option("--rounds", default=5, show_default=True, help="Rounds of each mesh, in turn.")
@click.option("--threads", default=1, show_default=True, help="CPU threads of the model.")
@click.option(
    "--store",
    "url",
    default="",
    help="Store with a packed model and a live set; default: the fixture.",
)
@click.option("--budget", default="4/16", show_default=True)
@json_option
def main(
    clients: int,
    requests: int,
    tokens: int,
    rounds: int,
    threads: int,
    url: str,
    budget: str,
    json_file: Path | None,
) -> None:
    """Measure on the fixture model, or on that of a store."""
    settings = {"clients": clients, "requests": requests, "tokens": tokens, "rounds": rounds, "threads": threads}
    report = Report("engine in a thread or a process", settings | {"budget": budget, "store": url or FIXTURE.name})
    samples: dict[str, list[dict[str, float]]] = {place: [] for place in PLACES}
    with _store(url) as place_of_packs, _meshes(place_of_packs, budget, threads) as meshes:
        for turn in range(rounds + 1):
            for place in PLACES if turn % 2 else reversed(PLACES):
                found = asyncio.run(_load(meshes[place], clients, requests, tokens))
                if turn:  # the first round warms up
                    samples[place].append(found.figures())
    for name in samples["thread"][0]:
        medians = {place: float(np.median([each[name] for each in samples[place]])) for place in PLACES}
        report.values[name] = medians
        if name != "swaps":
            report.values[f"{name}: process over thread"] = medians["process"] / medians["thread"]
    report.finish(json_file)


@contextmanager
def _store(url: str) -> Iterator[str]:
    if url:
        yield url
        return
    with tempfile.TemporaryDirectory(prefix="premoe-engine-process-") as work:
        made = f"file://{work}/store"
        pack_fixture(FIXTURE, made)
        prepare(made, lambda text, share: None)
        yield made


@contextmanager
def _meshes(url: str, budget: str, threads: int) -> Iterator[dict[str, Mesh]]:
    with ExitStack() as stack:
        options = MeshOptions(model=url, budget=budget, threads=threads, context_length=512, log_level="warning")
        made = {}
        for place in PLACES:
            with mock.patch.dict(os.environ, PREMOE_WORKER_ENGINE=place):
                made[place] = stack.enter_context(running(options))
        yield made


async def _load(mesh: Mesh, clients: int, requests: int, tokens: int) -> Sample:
    sample = Sample()
    async with channel(mesh.worker_addresses[0]) as opened:
        stub: worker_pb2_grpc.WorkerServiceAsyncStub = worker_pb2_grpc.WorkerServiceStub(opened)
        assert mesh.live is not None, "checked with the store"
        patterns = [member.pattern_id for member in mesh.live.members][:MOST_TASKS]
        start = time.perf_counter()
        await asyncio.gather(*(_client(stub, sample, patterns, number, requests, tokens) for number in range(clients)))
        sample.wall_s = time.perf_counter() - start
    return sample


async def _client(
    stub: worker_pb2_grpc.WorkerServiceAsyncStub,
    sample: Sample,
    patterns: Sequence[str],
    number: int,
    requests: int,
    tokens: int,
) -> None:
    draw = random.Random(number)
    for turn in range(requests):
        # The pattern is named, so any text will do.
        message = worker_pb2.Message(role="user", content="".join(draw.choices("abcdefgh 0123456789", k=24)))
        choice = worker_pb2.PatternChoice(
            decision=patterns_pb2.DECISION_SPECIALIST, pattern_id=patterns[(number + turn) % len(patterns)]
        )
        asked = worker_pb2.GenerateRequest(
            prompt=worker_pb2.Prompt(chat=worker_pb2.Chat(messages=[message])),
            # Tempered, so that answers are long: at temperature 0 the fixture is done after a few tokens.
            sampling=worker_pb2.Sampling(max_tokens=tokens, temperature=8.0, seed=number),
            pattern=choice,
        )
        last = sent = time.perf_counter()
        async for event in stub.Generate(asked):
            now = time.perf_counter()
            if event.WhichOneof("event") == "started":
                sample.swaps += event.started.swap.blobs_loaded > 0
            if event.WhichOneof("event") != "delta":
                continue
            sample.tokens += len(event.delta.token_ids)
            (sample.first_s if last == sent else sample.between_s).append(now - last)
            last = now


if __name__ == "__main__":
    main()
