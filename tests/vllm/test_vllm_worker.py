"""Workers on vLLM as people run them: a mesh that answers the OpenAI API and gRPC, and the death of an engine."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from premoe.worker.v1 import worker_pb2, worker_pb2_grpc
from premoe_local.mesh import Mesh
from premoe_servicekit.clients import blocking_channel
from premoe_servicekit.errors import rpc_errors
from support.mesh import mesh_over, prepare_store, prompts
from support.processes import engine_process, run_to_end
from support.vllm_bench import HEADS

from premoe_runtime.formats.errors import PremoeError, Unavailable

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

TASKS = ("capitals", "digits")


@pytest.fixture(scope="module")
def store_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return prepare_store(tmp_path_factory.mktemp("model"), **HEADS["qwen3_moe"])


@pytest.fixture(scope="module")
def mesh(store_url: str) -> Iterator[Mesh]:
    with mesh_over(store_url, engine="vllm", engine_arguments='{"block_size": 32}', max_sequences=4) as running:
        yield running


def answer(mesh: Mesh, text: str, **fields: Any) -> dict[str, Any]:
    body = {
        "model": mesh.model_name,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 24,
        "temperature": 0,
        **fields,
    }
    reply = httpx.post(f"{mesh.url}/v1/chat/completions", json=body, timeout=600)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def asked() -> list[str]:
    """Of two tasks in turn."""
    return [text for pair in zip(*(prompts(task, 3, seed=7) for task in TASKS), strict=True) for text in pair]


def together(mesh: Mesh, **fields: Any) -> list[dict[str, Any]]:
    with ThreadPoolExecutor(len(asked())) as pool:
        return list(pool.map(lambda text: answer(mesh, text, **fields), asked()))


def test_two_patterns_in_flight_answer_as_under_the_engine_hf(mesh: Mesh, store_url: str) -> None:
    ours = together(mesh, logprobs=True)
    with mesh_over(store_url) as other:
        theirs = together(other, logprobs=True)
    assert [each["premoe"]["pattern"] for each in ours] == [each["premoe"]["pattern"] for each in theirs]
    assert len({json.dumps(each["premoe"]["pattern"]) for each in ours}) == 2
    for mine, its in zip(ours, theirs, strict=True):
        assert mine["choices"][0]["message"] == its["choices"][0]["message"]
        assert mine["usage"] == its["usage"]
        said, expected = (each["choices"][0]["logprobs"]["content"] for each in (mine, its))
        assert [token["logprob"] for token in said] == pytest.approx([token["logprob"] for token in expected], abs=1e-4)


def test_an_engine_that_is_killed_turns_the_worker_not_serving(store_url: str) -> None:
    with mesh_over(store_url, engine="auto") as mesh, blocking_channel(mesh.worker_addresses[0]) as opened:
        (worker,) = mesh.workers
        stub, health = worker_pb2_grpc.WorkerServiceStub(opened), health_pb2_grpc.HealthStub(opened)
        statuses = health.Watch(health_pb2.HealthCheckRequest(), timeout=600)
        assert next(statuses).status == health_pb2.HealthCheckResponse.SERVING
        message = worker_pb2.Message(role="user", content=asked()[0])
        prompt = worker_pb2.Prompt(chat=worker_pb2.Chat(messages=[message]))
        sampling = worker_pb2.Sampling(max_tokens=200)
        events = stub.Generate(worker_pb2.GenerateRequest(prompt=prompt, sampling=sampling))
        while next(events).WhichOneof("event") != "delta":
            pass
        os.kill(engine_process(worker.pid), signal.SIGKILL)
        with pytest.raises(Unavailable, match="killed by SIGKILL"), rpc_errors("worker"):
            list(events)
        with pytest.raises((Unavailable, PremoeError)):
            mesh.watch()


REFUSALS = {
    "an argument": (["--engine", "vllm", "--engine-arguments", '{"enable_eplb": true}'], "enable_eplb"),
    "no object": (["--engine", "vllm", "--engine-arguments", "[1]"], "JSON object"),
    "without vllm": (["--engine-arguments", '{"block_size": 32}'], "--engine vllm"),
}


@pytest.mark.parametrize("case", REFUSALS.values(), ids=REFUSALS.keys())
def test_bad_arguments_are_one_line(mesh: Mesh, case: tuple[list[str], str], tmp_path: Path) -> None:
    arguments, message = case
    ended = run_to_end("premoe_worker.cli", ["--store", mesh.store_address, "--budget", "2/4", *arguments])
    assert ended.returncode == 2, ended.stderr
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
