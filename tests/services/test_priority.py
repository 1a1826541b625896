"""Priority through a whole mesh: where one sequence runs at a time, larger numbers wait for those with smaller ones."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from premoe.patterns.v1 import patterns_pb2
from premoe.worker.v1 import worker_pb2, worker_pb2_grpc
from premoe_local.mesh import Mesh
from premoe_servicekit.clients import blocking_channel
from support.mesh import mesh_over, prepare_store

pytestmark = pytest.mark.timeout(300)

CONTEXT = 16_384
"""So long an answer is never over by the time that it is cut off."""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """With room for one sequence at a time."""
    store_url = prepare_store(tmp_path_factory.mktemp("model"), max_position_embeddings=CONTEXT)
    with mesh_over(store_url, max_sequences=1, context_length=CONTEXT) as running:
        yield running


def endless() -> worker_pb2.GenerateRequest:
    return worker_pb2.GenerateRequest(
        prompt=worker_pb2.Prompt(text="abc"),
        sampling=worker_pb2.Sampling(max_tokens=CONTEXT - 64, ignore_eos=True),
        pattern=worker_pb2.PatternChoice(decision=patterns_pb2.DECISION_GENERALIST),
    )


def test_a_larger_number_waits_for_those_with_smaller_ones(mesh: Mesh) -> None:
    def ask_later() -> httpx.Response:
        body = {"model": mesh.model_name, "prompt": "abc", "max_tokens": 2, "pattern": "generalist", "priority": 5}
        return httpx.post(f"{mesh.url}/v1/completions", json=body, timeout=120)

    with blocking_channel(mesh.worker_addresses[0]) as opened, ThreadPoolExecutor(1) as pool:
        worker = worker_pb2_grpc.WorkerServiceStub(opened)
        first = worker.Generate(endless())
        assert [next(first).WhichOneof("event") for _ in range(2)] == ["started", "delta"]
        later = pool.submit(ask_later)
        while not worker.GetResidency(worker_pb2.GetResidencyRequest()).waiting:
            time.sleep(0.01)
        second = worker.Generate(endless())
        # The engine has it from here on.
        assert next(second).WhichOneof("event") == "started"
        first.cancel()
        assert next(second).WhichOneof("event") == "delta"
        assert not later.done()
        second.cancel()
        assert later.result().json()["usage"]["completion_tokens"] == 2
