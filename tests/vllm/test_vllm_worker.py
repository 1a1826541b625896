"""Workers on vLLM as people run them: a mesh that answers the OpenAI API and gRPC, and the death of an engine."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from premoe.patterns.v1 import patterns_pb2
from premoe.worker.v1 import worker_pb2, worker_pb2_grpc
from premoe_local.mesh import Mesh
from premoe_servicekit.clients import blocking_channel
from premoe_servicekit.errors import rpc_errors
from support.mesh import mesh_over, prepare_store, prompts
from support.processes import engine_processes, run_to_end, serving
from support.vllm_bench import HEADS

from premoe_runtime.formats.errors import Unavailable

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
    # Those of both tasks, and the generalist for a prompt that is not recognised.
    assert len({json.dumps(each["premoe"]["pattern"]) for each in ours}) >= 2
    for mine, its in zip(ours, theirs, strict=True):
        assert mine["choices"][0]["message"] == its["choices"][0]["message"]
        assert mine["usage"] == its["usage"]
        said, expected = (each["choices"][0]["logprobs"]["content"] for each in (mine, its))
        assert [token["logprob"] for token in said] == pytest.approx([token["logprob"] for token in expected], abs=1e-4)


def test_a_shaped_answer_and_a_seed(mesh: Mesh) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    shape = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    made = answer(mesh, asked()[0], response_format=shape, max_tokens=200, temperature=1.0, seed=1)
    shaped = made["choices"][0]["message"]["content"]
    assert json.loads(shaped) in ({"ok": True}, {"ok": False})
    drawn = [answer(mesh, asked()[1], temperature=1.0, seed=seed)["choices"][0]["message"] for seed in (5, 5, 6)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_rank_that_is_killed_turns_the_worker_not_serving_and_ends_it(mesh: Mesh) -> None:
    experts = str(mesh.manifest.num_experts)
    arguments = ["--store", mesh.store_address, "--budget", "2/4", "--slots", experts, "--threads", "1"]
    # So that there is time to look at it.
    arguments += ["--engine", "auto", "--engine-arguments", '{"tensor_parallel_size": 2}', "--drain-delay-s", "3600"]
    reason = "rank [01] of 2: the engine process was killed by SIGKILL"
    with serving("premoe_worker.cli", arguments, {"OMP_WAIT_POLICY": "PASSIVE"}) as child:
        with blocking_channel(child.address) as opened:
            stub, health = worker_pb2_grpc.WorkerServiceStub(opened), health_pb2_grpc.HealthStub(opened)
            statuses = health.Watch(health_pb2.HealthCheckRequest(), timeout=600)
            assert next(statuses).status == health_pb2.HealthCheckResponse.SERVING
            message = worker_pb2.Message(role="user", content=asked()[0])
            events = stub.Generate(
                worker_pb2.GenerateRequest(
                    prompt=worker_pb2.Prompt(chat=worker_pb2.Chat(messages=[message])),
                    sampling=worker_pb2.Sampling(max_tokens=900),
                    pattern=worker_pb2.PatternChoice(decision=patterns_pb2.DECISION_FULL),
                )
            )
            while next(events).WhichOneof("event") != "delta":
                pass
            engines = engine_processes(child.process.pid)
            assert len(engines) == 2
            os.kill(engines[1], signal.SIGKILL)
            with pytest.raises(Unavailable, match=reason), rpc_errors("worker"):
                list(events)
            assert next(statuses).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert child.stop(signal.SIGTERM) == Unavailable.exit_code
        # Behind it Python counts the semaphores that the killed process has left.
        (said,) = [line for line in child.stderr().splitlines() if line.startswith("error: ")]
        assert re.match(f"error: serving ended: Unavailable: {reason}", said)


REFUSALS = {
    "an argument": (["--engine", "vllm", "--engine-arguments", '{"enable_eplb": true}'], "enable_eplb"),
    "no object": (["--engine", "vllm", "--engine-arguments", "[1]"], "JSON object"),
    "without vllm": (["--engine-arguments", '{"block_size": 32}'], "--engine vllm"),
}


@pytest.mark.parametrize("case", REFUSALS.values(), ids=REFUSALS.keys())
def test_bad_arguments_are_one_line(mesh: Mesh, case: tuple[list[str], str]) -> None:
    arguments, message = case
    given = ["--store", mesh.store_address, "--budget", "2/4", *arguments]
    ended = run_to_end("premoe_worker.cli", given, timeout_s=1200)
    assert ended.returncode == 2, ended.stderr
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last


def test_a_denied_request_shares_no_prefix_with_others_and_leaves_them_as_they_were(mesh: Mesh) -> None:
    text = prompts("digits", 1, seed=9)[0] * 4

    def told(**fields: Any) -> list[float]:
        found = answer(mesh, text, pattern="digits", logprobs=True, **fields)
        return [token["logprob"] for token in found["choices"][0]["logprobs"]["content"]]

    plain, denied = told(), told(deny=["digits"])
    assert denied != plain
    assert (told(), told(deny=["digits"]), told(deny=[])) == (plain, denied, plain)
