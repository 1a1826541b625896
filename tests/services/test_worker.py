"""A worker process over gRPC: probe, residency, generation, cancellation, admin."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from premoe.patterns.v1 import patterns_pb2, patterns_pb2_grpc
from premoe.worker.v1 import worker_pb2, worker_pb2_grpc
from premoe_local.mesh import Mesh
from premoe_servicekit.clients import blocking_channel, channel
from premoe_servicekit.errors import rpc_errors
from support import dying_worker
from support.mesh import BUDGET, UNKNOWN, mesh_over, prepare_store, prompts
from support.processes import engine_process, run_to_end, serving

from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.errors import Conflict, CorruptData, InvalidInput, NotFound, PremoeError, Unavailable
from premoe_runtime.formats.pattern import Pattern
from premoe_runtime.formats.signature import EARLIER_TURNS
from premoe_runtime.offline.patterns.library import find_set
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.storage import open_store

pytestmark = pytest.mark.timeout(300)  # every mesh is four processes, and a worker imports torch

Stub = worker_pb2_grpc.WorkerServiceStub


@pytest.fixture
def worker(mesh: Mesh) -> Iterator[Stub]:
    with blocking_channel(mesh.worker_addresses[0]) as opened:
        yield Stub(opened)


@pytest.fixture
async def aio_worker(mesh: Mesh) -> AsyncIterator[worker_pb2_grpc.WorkerServiceAsyncStub]:
    async with channel(mesh.worker_addresses[0]) as opened:
        yield Stub(opened)


def chat(text: str) -> worker_pb2.Prompt:
    return worker_pb2.Prompt(chat=worker_pb2.Chat(messages=[worker_pb2.Message(role="user", content=text)]))


def request(text: str = "0123456789", tokens: int = 4, **fields: object) -> worker_pb2.GenerateRequest:
    made = worker_pb2.GenerateRequest(prompt=chat(text), sampling=worker_pb2.Sampling(max_tokens=tokens))
    made.MergeFrom(worker_pb2.GenerateRequest(**fields))  # type: ignore[arg-type]
    return made


def pattern_ids(store_url: str) -> dict[str, str]:
    return {member.task: member.pattern_id for member in find_set(open_store(store_url)).members}


def specialist(pattern_id: str) -> worker_pb2.PatternChoice:
    return worker_pb2.PatternChoice(decision=patterns_pb2.DECISION_SPECIALIST, pattern_id=pattern_id)


def test_a_probe_is_a_signature_that_retrieval_recognises(mesh: Mesh, worker: Stub) -> None:
    answer = worker.Probe(worker_pb2.ProbeRequest(prompt=chat(prompts("capitals", 1, seed=7)[0])))
    assert (answer.tokens, answer.weights_id) == (24, mesh.manifest.weights_id)
    assert np.linalg.norm(answer.signature) == pytest.approx(1, abs=1e-5)
    with blocking_channel(mesh.retrieval_address) as opened:
        stub = patterns_pb2_grpc.PatternServiceStub(opened)
        found = stub.Retrieve(patterns_pb2.RetrieveRequest(weights_id=answer.weights_id, signature=answer.signature))
    assert found.task == "capitals"


def test_generate_reports_what_it_did_and_residency_agrees(mesh: Mesh, worker: Stub, store_url: str) -> None:
    pattern_id = pattern_ids(store_url)["capitals"]
    events = list(worker.Generate(request(tokens=5, pattern=specialist(pattern_id))))
    started, finished = events[0].started, events[-1].finished
    assert started.pattern.pattern_id == pattern_id
    assert started.swap.bytes_loaded == started.swap.blobs_loaded * mesh.manifest.layout.blob_bytes
    tokens = [token for event in events[1:-1] for token in event.delta.token_ids]
    assert len(tokens) == finished.completion_tokens <= 5
    assert finished.reason in (worker_pb2.FINISH_REASON_STOP, worker_pb2.FINISH_REASON_LENGTH)
    assert 0 < finished.retained_mass < 1
    again = list(worker.Generate(request(tokens=5, pattern=specialist(pattern_id))))
    assert (again[0].started.swap.blobs_loaded, again[0].started.swap.milliseconds) == (0, 0.0)
    residency = worker.GetResidency(worker_pb2.GetResidencyRequest())
    assert residency.generation >= started.generation > 0
    assert (residency.budget, residency.slots_per_layer, residency.experts_per_layer) == (BUDGET, 6, 16)
    assert [len(layer.slots) for layer in residency.layers] == list(residency.layer_slots)
    assert sum(residency.layer_slots) == 6 * len(residency.layers)
    assert residency.device_bytes == 6 * 2 * mesh.manifest.layout.blob_bytes
    assert residency.total_bytes == mesh.manifest.experts_bytes
    assert tuple(residency.layer_slots) == find_set(open_store(store_url)).layer_slots(4, 2)
    pattern = Pattern.load(open_store(store_url).get, pattern_id)
    for layer, kept in zip(residency.layers, pattern.kept(Budget.parse(BUDGET), residency.layer_slots), strict=True):
        assert set(np.flatnonzero(kept)) <= set(layer.slots)


def test_text_token_ids_and_chat_that_say_the_same_answer_the_same(worker: Stub) -> None:
    full_text = "<|user|>abc<|assistant|>"
    tokens = worker_pb2.TokenIds(ids=[258, *[ord(c) - ord("a") + 64 for c in "abc"], 259])
    by_text = worker_pb2.Prompt(text=full_text)
    answers = []
    for prompt in (chat("abc"), by_text, worker_pb2.Prompt(token_ids=tokens)):
        made = worker_pb2.GenerateRequest(prompt=prompt, sampling=worker_pb2.Sampling(max_tokens=6))
        made.pattern.decision = patterns_pb2.DECISION_GENERALIST
        events = list(worker.Generate(made))
        answers.append([token for event in events for token in event.delta.token_ids])
        assert events[0].started.prompt_tokens == 5
    assert answers[0] == answers[1] == answers[2]


def test_an_answer_without_a_number_fills_the_context(worker: Stub, store_url: str) -> None:
    chosen = specialist(pattern_ids(store_url)["capitals"])
    finished = list(worker.Generate(request(tokens=0, pattern=chosen)))[-1].finished
    assert (
        finished.reason == worker_pb2.FINISH_REASON_STOP or finished.completion_tokens == 256 - finished.prompt_tokens
    )
    # The last token that fits, and its probe.
    long = "0" * (255 - 2)
    assert worker.Probe(worker_pb2.ProbeRequest(prompt=chat(long))).tokens == len(long)
    finished = list(worker.Generate(request(long, tokens=0, pattern=chosen)))[-1].finished
    assert (finished.prompt_tokens, finished.completion_tokens) == (255, 1)


def test_every_token_has_its_log_probability_and_bytes(worker: Stub, store_url: str) -> None:
    asked = request(tokens=4, pattern=specialist(pattern_ids(store_url)["capitals"]))
    asked.sampling.logprobs = 2
    asked.sampling.prompt_logprobs = 0
    deltas = [event.delta for event in worker.Generate(asked) if event.HasField("delta")]
    told = [place.chosen for delta in deltas for place in delta.prompt_logprobs]
    text = b"".join(token.text for token in told if not token.special).decode()
    assert text == asked.prompt.chat.messages[0].content
    assert [token.HasField("logprob") for token in told] == [False] + [True] * (len(told) - 1)
    for delta in deltas:
        assert [place.chosen.token_id for place in delta.logprobs] == list(delta.token_ids)
        assert all(len(place.top) == 2 for place in delta.logprobs)


def wish(**fields: Any) -> worker_pb2.GenerateRequest:
    return worker_pb2.GenerateRequest(prompt=chat("0123"), sampling=worker_pb2.Sampling(max_tokens=4, **fields))


BAD: dict[str, tuple[worker_pb2.GenerateRequest, type[PremoeError], str]] = {
    "no prompt": (worker_pb2.GenerateRequest(), InvalidInput, "PROMPT_EMPTY"),
    "empty chat": (request(""), InvalidInput, "PROMPT_EMPTY"),
    "over-long": (request("x" * 300), InvalidInput, "CONTEXT_LENGTH_EXCEEDED"),
    "answer over the context": (request(tokens=250), InvalidInput, "CONTEXT_LENGTH_EXCEEDED"),
    "answer far over the context": (request(tokens=2**32 - 1), InvalidInput, "CONTEXT_LENGTH_EXCEEDED"),
    "unknown pattern": (request(pattern=specialist("f" * 64)), NotFound, "PATTERN_NOT_FOUND"),
    "no pattern id": (request(pattern=specialist("")), InvalidInput, "PATTERN_MISSING"),
    "no decision": (request(pattern=worker_pb2.PatternChoice()), InvalidInput, "PATTERN_MISSING"),
    "rejected": (
        request(pattern=worker_pb2.PatternChoice(decision=patterns_pb2.DECISION_REJECT)),
        Conflict,
        "UNKNOWN_TASK",
    ),
    "full without slots": (
        request(pattern=worker_pb2.PatternChoice(decision=patterns_pb2.DECISION_FULL)),
        Conflict,
        "FULL_NEEDS_ALL_SLOTS",
    ),
    "other model": (request(model="other"), NotFound, "MODEL_NOT_FOUND"),
    "too many experts": (request(active_experts=5), InvalidInput, "ACTIVE_EXPERTS_INVALID"),
    "no experts": (request(active_experts=0), InvalidInput, "ACTIVE_EXPERTS_INVALID"),
    "presence": (wish(presence_penalty=3), InvalidInput, "PRESENCE_PENALTY_INVALID"),
    "frequency": (wish(frequency_penalty=float("nan")), InvalidInput, "FREQUENCY_PENALTY_INVALID"),
    "repetition": (wish(repetition_penalty=-1), InvalidInput, "REPETITION_PENALTY_INVALID"),
    "min_p": (wish(min_p=1.5), InvalidInput, "MIN_P_INVALID"),
    "great bias": (wish(logit_bias={1: 101}), InvalidInput, "LOGIT_BIAS_INVALID"),
    "bias of no token": (wish(logit_bias={99999: 1}), InvalidInput, "LOGIT_BIAS_INVALID"),
    "many biases": (wish(logit_bias=dict.fromkeys(range(301), 1)), InvalidInput, "LOGIT_BIAS_INVALID"),
    "min_tokens": (wish(min_tokens=5), InvalidInput, "MIN_TOKENS_INVALID"),
    "end of no token": (wish(stop_token_ids=[99999]), InvalidInput, "STOP_TOKEN_IDS_INVALID"),
    "logprobs": (wish(logprobs=21), InvalidInput, "LOGPROBS_INVALID"),
    "prompt_logprobs": (wish(prompt_logprobs=21), InvalidInput, "PROMPT_LOGPROBS_INVALID"),
    "unknown task": (
        request(UNKNOWN, on_unknown=patterns_pb2.ON_UNKNOWN_REJECT),
        Conflict,
        "UNKNOWN_TASK",
    ),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD.keys())
def test_bad_requests_are_refused_with_a_reason(
    worker: Stub, case: tuple[worker_pb2.GenerateRequest, type[PremoeError], str]
) -> None:
    made, kind, reason = case
    with pytest.raises(kind) as caught, rpc_errors("worker"):
        list(worker.Generate(made))
    assert caught.value.reason == reason


async def running(stub: worker_pb2_grpc.WorkerServiceAsyncStub) -> int:
    residency = await stub.GetResidency(worker_pb2.GetResidencyRequest())
    return residency.running + residency.waiting


async def wait_idle(stub: worker_pb2_grpc.WorkerServiceAsyncStub) -> None:
    async with asyncio.timeout(20):
        while await running(stub):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_cancelled_call_frees_its_rows(aio_worker: worker_pb2_grpc.WorkerServiceAsyncStub) -> None:
    generalist = worker_pb2.PatternChoice(decision=patterns_pb2.DECISION_GENERALIST)
    call = aio_worker.Generate(request(tokens=200, pattern=generalist))
    async for event in call:
        if event.WhichOneof("event") == "delta":
            break
    assert await running(aio_worker) == 1
    call.cancel()
    await wait_idle(aio_worker)


async def test_a_deadline_ends_the_sequence(aio_worker: worker_pb2_grpc.WorkerServiceAsyncStub) -> None:
    generalist = worker_pb2.PatternChoice(decision=patterns_pb2.DECISION_GENERALIST)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in aio_worker.Generate(request(tokens=200, pattern=generalist), timeout=0.05):
            pass
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await wait_idle(aio_worker)


async def test_patterns_in_turn_and_together_answer_as_alone(
    aio_worker: worker_pb2_grpc.WorkerServiceAsyncStub, store_url: str
) -> None:
    """Three patterns on six slots: some fit together, some must take turns."""

    async def tokens(task: str) -> list[int]:
        made = request(prompts(task, 1, seed=9)[0], tokens=40, pattern=specialist(pattern_ids(store_url)[task]))
        return [token async for event in aio_worker.Generate(made) for token in event.delta.token_ids]

    tasks = ["digits", "capitals", "vowels"]
    alone = [await tokens(task) for task in tasks]
    together = await asyncio.gather(*(tokens(task) for task in tasks))
    assert list(together) == alone


def test_admin_is_on_a_port_of_its_own(mesh: Mesh, worker: Stub, store_url: str) -> None:
    assert mesh.admin_addresses[0].startswith("127.0.0.1:")
    admin_request = worker_pb2.LoadPatternRequest(pattern_id=pattern_ids(store_url)["vowels"])
    with blocking_channel(mesh.worker_addresses[0]) as opened:
        with pytest.raises(grpc.RpcError) as caught:
            worker_pb2_grpc.WorkerAdminServiceStub(opened).LoadPattern(admin_request)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    with blocking_channel(mesh.admin_addresses[0]) as opened:
        admin = worker_pb2_grpc.WorkerAdminServiceStub(opened)
        admin.LoadPattern(admin_request)
        with pytest.raises(NotFound), rpc_errors("worker"):
            admin.LoadPattern(worker_pb2.LoadPatternRequest(pattern_id="f" * 64))
        events = list(worker.Generate(request(pattern=specialist(admin_request.pattern_id))))
        assert events[0].started.swap.blobs_loaded == 0
        admin.UnloadPattern(worker_pb2.UnloadPatternRequest(pattern_id=admin_request.pattern_id))


def test_a_byte_that_changed_in_host_memory_is_found(mesh: Mesh, worker: Stub) -> None:
    list(worker.Generate(request()))
    tier = next(fd for fd in Path(f"/proc/{mesh.workers[0].pid}/fd").iterdir() if "host-tier" in os.readlink(fd))
    asked = worker_pb2.CheckIntegrityRequest()
    with blocking_channel(mesh.admin_addresses[0]) as opened, tier.open("r+b", buffering=0) as memory:
        admin = worker_pb2_grpc.WorkerAdminServiceStub(opened)
        admin.CheckIntegrity(asked)
        was = memory.read(1)
        os.pwrite(memory.fileno(), bytes([was[0] ^ 1]), 0)
        try:
            with pytest.raises(CorruptData, match="changed in the host tier"), rpc_errors("worker"):
                admin.CheckIntegrity(asked)
        finally:
            os.pwrite(memory.fileno(), was, 0)
        admin.CheckIntegrity(asked)


async def test_drain_waits_and_refuses(store_url: str) -> None:
    with mesh_over(store_url) as mesh:
        async with channel(mesh.worker_addresses[0]) as opened, channel(mesh.admin_addresses[0]) as admin_channel:
            stub, admin = Stub(opened), worker_pb2_grpc.WorkerAdminServiceStub(admin_channel)
            generalist = worker_pb2.PatternChoice(decision=patterns_pb2.DECISION_GENERALIST)
            call = stub.Generate(request(tokens=200, pattern=generalist))
            first = await call.read()
            assert isinstance(first, worker_pb2.GenerateResponse)
            drained = asyncio.create_task(_drain(admin))
            events = [event async for event in call]
            assert events[-1].WhichOneof("event") == "finished"
            assert await drained == 0
            with pytest.raises(Unavailable) as caught, rpc_errors("worker"):
                async for _ in stub.Generate(request()):
                    pass
            assert caught.value.reason == "DRAINING"


async def _drain(admin: worker_pb2_grpc.WorkerAdminServiceAsyncStub) -> int:
    return (await admin.Drain(worker_pb2.DrainRequest(timeout_s=60))).remaining


STARTS: dict[str, tuple[list[str], int, str]] = {
    "a > top-k": (["--budget", "5/8"], 2, "top-k is 4"),
    "b < a": (["--budget", "4/2"], 2, "at least 4"),
    "b > experts": (["--budget", "4/17"], 2, "the model has 16"),
    "slots": (["--budget", "2/4", "--slots", "5"], 2, "at least 6"),
    "full": (["--budget", "2/4", "--on-unknown", "full"], 4, "--slots 16"),
    "model": (["--budget", "2/4", "--model-id", "f" * 64], 3, "f" * 16),
    "context": (["--budget", "2/4", "--context-length", "100000000"], 2, "outside 1 to 1024"),
    "device": (["--budget", "2/4", "--device", "zzz"], 2, "device 'zzz' cannot be used here"),
}


@pytest.fixture(scope="module")
def store_address(store_url: str) -> Iterator[str]:
    with serving("premoe_expert_store.cli", ["--store-url", store_url]) as child:
        yield child.address


@pytest.mark.parametrize("case", STARTS.values(), ids=STARTS.keys())
def test_a_worker_that_cannot_work_says_so_in_one_line(store_address: str, case: tuple[list[str], int, str]) -> None:
    arguments, code, message = case
    ended = run_to_end("premoe_worker.cli", ["--store", store_address, *arguments])
    assert ended.returncode == code, ended.stderr
    assert ended.stdout == ""
    (line,) = ended.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_a_worker_s_port_in_use_is_one_line(store_address: str) -> None:
    arguments = ["--store", store_address, "--budget", "2/4", "--port", store_address.rpartition(":")[2]]
    ended = run_to_end("premoe_worker.cli", arguments)
    assert ended.returncode == 6
    assert "is in use" in ended.stderr.strip()
    assert len(ended.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("engine", ["thread", "process"])
def test_without_retrieval_the_full_model_is_served(store_address: str, store_url: str, engine: str) -> None:
    experts = open_pack(store_url).manifest().num_experts
    arguments = ["--store", store_address, "--budget", "2/4", "--slots", str(experts), "--threads", "1"]
    arguments += ["--engine-place", engine]
    with serving("premoe_worker.cli", arguments, {"OMP_WAIT_POLICY": "PASSIVE"}) as child:
        with blocking_channel(child.address) as opened:
            stub = Stub(opened)
            full = worker_pb2.PatternChoice(decision=patterns_pb2.DECISION_FULL)
            events = list(stub.Generate(request(pattern=full)))
            assert events[-1].finished.retained_mass == pytest.approx(1, abs=1e-4)
            with pytest.raises(InvalidInput, match="no retrieval service"), rpc_errors("worker"):
                list(stub.Generate(request()))
        assert child.stop(signal.SIGTERM) == 0
        assert "error" not in child.stderr().lower()


def test_an_engine_process_that_is_killed_ends_the_worker_with_its_reason(store_address: str, store_url: str) -> None:
    experts = open_pack(store_url).manifest().num_experts
    arguments = ["--store", store_address, "--budget", "2/4", "--slots", str(experts), "--threads", "1"]
    arguments += ["--engine-place", "process", "--drain-delay-s", "3600"]  # so that there is time to look at it
    reason = "the engine process was killed by SIGKILL"
    with serving("premoe_worker.cli", arguments, {"OMP_WAIT_POLICY": "PASSIVE"}) as child:
        pid = engine_process(child.process.pid)
        full = worker_pb2.PatternChoice(decision=patterns_pb2.DECISION_FULL)
        with blocking_channel(child.address) as opened:
            stub, health = Stub(opened), health_pb2_grpc.HealthStub(opened)
            statuses = health.Watch(health_pb2.HealthCheckRequest(), timeout=60)
            assert next(statuses).status == health_pb2.HealthCheckResponse.SERVING
            events = stub.Generate(request(pattern=full, tokens=1000))
            while next(events).WhichOneof("event") != "delta":
                pass
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(Unavailable, match=reason), rpc_errors("worker"):
                list(events)
            assert next(statuses).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert child.stop(signal.SIGTERM) == Unavailable.exit_code
        last = child.stderr().strip().splitlines()[-1]
        assert last.startswith(f"error: serving ended: Unavailable: {reason}")
        assert last.endswith("; start the worker again")
    assert not Path(f"/proc/{pid}").exists()


def test_a_uniform_worker_serves_a_shared_set(store_url: str) -> None:
    pattern = Pattern.load(open_store(store_url).get, pattern_ids(store_url)["capitals"])
    assert pattern.allocation == "shared"
    with mesh_over(store_url, allocation="uniform") as mesh, blocking_channel(mesh.worker_addresses[0]) as opened:
        worker = Stub(opened)
        events = list(worker.Generate(request(tokens=2, pattern=specialist(pattern.pattern_id))))
        assert events[-1].finished.completion_tokens > 0
        residency = worker.GetResidency(worker_pb2.GetResidencyRequest())
    assert (residency.allocation, list(residency.layer_slots)) == ("uniform", [6, 6])
    even = replace(pattern, allocation="uniform").kept(Budget.parse(BUDGET))
    for layer, kept in zip(residency.layers, even, strict=True):
        assert set(np.flatnonzero(kept)) <= set(layer.slots)


def test_an_engine_that_dies_ends_the_process_with_its_reason(store_address: str, store_url: str) -> None:
    experts = open_pack(store_url).manifest().num_experts
    arguments = ["--store", store_address, "--budget", "2/4", "--slots", str(experts), "--threads", "1"]
    arguments += ["--drain-delay-s", "3600"]  # so that there is time to look at it
    environment = {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(Path(__file__).parents[1])}
    with serving("support.dying_worker", arguments, environment) as child:
        full = worker_pb2.PatternChoice(decision=patterns_pb2.DECISION_FULL)
        with blocking_channel(child.address) as opened:
            stub, health = Stub(opened), health_pb2_grpc.HealthStub(opened)
            assert list(stub.Generate(request(pattern=full)))
            statuses = health.Watch(health_pb2.HealthCheckRequest(), timeout=60)
            assert next(statuses).status == health_pb2.HealthCheckResponse.SERVING
            with pytest.raises(Unavailable, match=dying_worker.REASON), rpc_errors("worker"):
                list(stub.Generate(request(pattern=full, tokens=dying_worker.FATAL_TOKENS)))
            assert next(statuses).status == health_pb2.HealthCheckResponse.NOT_SERVING
            with pytest.raises(Unavailable), rpc_errors("worker"):
                list(stub.Generate(request(pattern=full)))
        assert child.stop(signal.SIGTERM) == Unavailable.exit_code
        last = child.stderr().strip().splitlines()[-1]
        assert last == f"error: serving ended: RuntimeError: {dying_worker.REASON}; start the worker again"


def test_a_model_pruned_to_uneven_layers_is_packed_profiled_and_served(tmp_path: Path) -> None:
    """Two layers of 11 and 5 experts at 2/4 and 2 spare slots: 12 slots, of which the short layer holds 5 at most."""
    url = prepare_store(tmp_path, (11, 5))
    with mesh_over(url) as mesh, blocking_channel(mesh.worker_addresses[0]) as opened:
        worker = Stub(opened)
        events = list(worker.Generate(request(prompts("capitals", 1, seed=7)[0], tokens=6)))
        assert (events[0].started.pattern.task, events[-1].finished.completion_tokens) == ("capitals", 6)
        assert 0 < events[-1].finished.retained_mass < 1
        residency = worker.GetResidency(worker_pb2.GetResidencyRequest())
        assert tuple(residency.layer_slots) == find_set(open_store(url)).layer_slots(4, 2)
        assert sum(residency.layer_slots) == 12
        assert residency.layer_slots[1] <= 5
        assert (residency.experts_per_layer, residency.total_bytes) == (11, 16 * mesh.manifest.layout.blob_bytes)
        for layer, count in zip(residency.layers, (11, 5), strict=True):
            assert max(layer.slots) < count
        full = worker_pb2.PatternChoice(decision=patterns_pb2.DECISION_FULL)
        with pytest.raises(Conflict, match="the full model needs 11/5 slots a layer"), rpc_errors("worker"):
            list(worker.Generate(request(pattern=full)))
    with mesh_over(url, slots=11) as mesh, blocking_channel(mesh.worker_addresses[0]) as opened:
        worker = Stub(opened)
        events = list(worker.Generate(request(tokens=6, pattern=full)))
        assert events[-1].finished.retained_mass == pytest.approx(1.0)
        residency = worker.GetResidency(worker_pb2.GetResidencyRequest())
        assert residency.device_bytes == residency.total_bytes


def said(*turns: tuple[str, str]) -> worker_pb2.ProbeRequest:
    messages = [worker_pb2.Message(role=role, content=content) for role, content in turns]
    return worker_pb2.ProbeRequest(prompt=worker_pb2.Prompt(chat=worker_pb2.Chat(messages=messages)))


def test_a_probe_of_a_conversation_tells_every_user_turn_by_itself(worker: Stub) -> None:
    digits, capitals = prompts("digits", 1, seed=3)[0], prompts("capitals", 1, seed=3)[0]
    answer = worker.Probe(said(("user", digits), ("assistant", "yes"), ("user", " "), ("user", capitals)))
    first, last = worker.Probe(said(("user", digits))), worker.Probe(said(("user", capitals)))
    assert (list(first.alone), list(first.earlier)) == ([], []), "one turn alone is the whole conversation"
    assert list(answer.alone) == list(last.signature)
    assert [list(each.values) for each in answer.earlier] == [list(first.signature)]
    assert list(answer.signature) != list(answer.alone), "what comes before leaks into the whole"
    assert answer.tokens == last.tokens


def test_a_probe_tells_of_the_latest_turns_only(worker: Stub) -> None:
    talk = [("user", letter) for letter in "ABCDEFGHIJKLM"]
    answer = worker.Probe(said(("system", "x"), *talk))
    assert len(answer.earlier) == EARLIER_TURNS
    wanted = worker.Probe(said(("user", "L"))).signature
    assert list(answer.earlier[-1].values) == list(wanted)
