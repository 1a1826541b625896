"""The retrieval service as a real process."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import TypeAlias

import pytest
from premoe.patterns.v1 import patterns_pb2 as pb
from premoe.patterns.v1 import patterns_pb2_grpc
from premoe_retrieval.adapters.edge import EdgeIndex
from premoe_servicekit.clients import channel
from premoe_servicekit.errors import rpc_errors
from support.processes import run_to_end, serving
from support.stored_patterns import FAR, TASKS, WEIGHTS, StoredSet, store_set

from premoe_runtime.formats.arrays import F32
from premoe_runtime.formats.errors import Conflict, InvalidInput, NotFound, PremoeError
from premoe_runtime.storage import open_store

MODULE = "premoe_retrieval.cli"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path / 'store'}"


@pytest.fixture
def stored(url: str) -> StoredSet:
    return store_set(open_store(url))


Stub: TypeAlias = "patterns_pb2_grpc.PatternServiceAsyncStub"


async def go_live(stub: Stub, stored: StoredSet) -> None:
    published = await stub.PublishSet(pb.PublishSetRequest(set_id=stored.set_id))
    assert published.exemplars == 21
    live = await stub.SetLive(pb.SetLiveRequest(weights_id=WEIGHTS, set_id=stored.set_id))
    assert live.previous_set_id == ""


def asking(signature: F32, **fields: object) -> pb.RetrieveRequest:
    return pb.RetrieveRequest(weights_id=WEIGHTS, signature=signature.tolist(), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("index", ["qdrant", "memory"])
async def test_a_set_goes_live_and_decides(url: str, stored: StoredSet, index: str) -> None:
    with serving(MODULE, ["--store-url", url, "--index", index]) as child:
        async with channel(child.address) as to_service:
            stub: Stub = patterns_pb2_grpc.PatternServiceStub(to_service)
            await go_live(stub, stored)
            for task in TASKS:
                answer = await stub.Retrieve(asking(stored.near(task)))
                assert (answer.decision, answer.task) == (pb.DECISION_SPECIALIST, task)
                assert answer.pattern_id == stored.pattern_id(task)
                assert answer.set_id == stored.set_id
                assert answer.score == answer.matches[0].score >= answer.matches[0].cutoff
                assert answer.matches[0].task == task
            unknown = [
                (await stub.Retrieve(asking(FAR, on_unknown=policy))).decision
                for policy in (pb.ON_UNKNOWN_UNSPECIFIED, pb.ON_UNKNOWN_FULL, pb.ON_UNKNOWN_REJECT)
            ]
            assert unknown == [pb.DECISION_GENERALIST, pb.DECISION_FULL, pb.DECISION_REJECT]
            listed = await stub.ListPatterns(pb.ListPatternsRequest(weights_id=WEIGHTS))
            assert [pattern.task for pattern in listed.patterns] == [*TASKS, "generalist"]
            assert listed.generalist_id == stored.pattern_id("generalist")
            assert listed.weights_id == WEIGHTS
            read = await stub.GetPattern(pb.GetPatternRequest(pattern_id=stored.pattern_id("sorting")))
            assert read.pattern == listed.patterns[0]
            assert [list(layer.experts) for layer in read.layers] == stored.patterns["sorting"].ranking.tolist()
        assert await asyncio.to_thread(child.stop) == 0


async def error_of(stub: Stub, request: pb.RetrieveRequest) -> PremoeError:
    with pytest.raises(PremoeError) as caught, rpc_errors("retrieval"):
        await stub.Retrieve(request)
    return caught.value


async def test_errors_keep_their_class_and_reason_over_the_wire(url: str, stored: StoredSet) -> None:
    with serving(MODULE, ["--store-url", url]) as child:
        async with channel(child.address) as to_service:
            stub: Stub = patterns_pb2_grpc.PatternServiceStub(to_service)
            early = await error_of(stub, asking(FAR))
            await go_live(stub, stored)
            errors = [
                early,
                await error_of(stub, asking(FAR[:-1])),
                await error_of(stub, asking(FAR * 3)),
                await error_of(stub, asking(FAR, set_id="0" * 64)),
                await error_of(stub, asking(FAR, on_unknown=17)),
            ]
            assert [(type(error), error.reason) for error in errors] == [
                (NotFound, "NO_LIVE_SET"),
                (InvalidInput, "SIGNATURE_INVALID"),
                (InvalidInput, "SIGNATURE_INVALID"),
                (NotFound, "SET_NOT_FOUND"),
                (InvalidInput, "POLICY_INVALID"),
            ]
            with pytest.raises(Conflict, match="is live"), rpc_errors("retrieval"):
                await stub.DeleteSet(pb.DeleteSetRequest(set_id=stored.set_id))
            assert not (await stub.DeleteSet(pb.DeleteSetRequest(set_id="0" * 64))).existed


async def test_a_restart_indexes_the_live_set_again(url: str, stored: StoredSet) -> None:
    with serving(MODULE, ["--store-url", url]) as child:
        async with channel(child.address) as to_service:
            await go_live(patterns_pb2_grpc.PatternServiceStub(to_service), stored)
        assert await asyncio.to_thread(child.stop, signal.SIGINT) == 0
    with serving(MODULE, ["--store-url", url, "--on-unknown", "reject"]) as child:
        async with channel(child.address) as to_service:
            stub: Stub = patterns_pb2_grpc.PatternServiceStub(to_service)
            assert (await stub.Retrieve(asking(stored.near("sorting")))).task == "sorting"
            assert (await stub.Retrieve(asking(FAR))).decision == pb.DECISION_REJECT
        assert "indexed 1 live pattern sets" in child.stderr()


async def test_an_index_folder_is_held_by_one_process_and_kept(url: str, tmp_path: Path, stored: StoredSet) -> None:
    arguments = ["--store-url", url, "--qdrant", str(tmp_path / "index")]
    held = EdgeIndex(tmp_path / "index")
    ended = await asyncio.to_thread(run_to_end, MODULE, arguments)
    await held.close()
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: index folder")
    assert len(ended.stderr.splitlines()) == 1
    for turn in range(2):
        with serving(MODULE, arguments) as child:
            async with channel(child.address) as to_service:
                stub: Stub = patterns_pb2_grpc.PatternServiceStub(to_service)
                if not turn:
                    await go_live(stub, stored)
                assert (await stub.Retrieve(asking(stored.near("sorting")))).task == "sorting"
            child.process.kill()
            child.process.wait()


@pytest.mark.parametrize("lacking", ["engine", "room"])
async def test_without_qdrants_engine_or_room_for_it_the_matrix_answers_after_one_line(
    url: str, stored: StoredSet, tmp_path: Path, lacking: str
) -> None:
    if lacking == "engine":
        (tmp_path / "qdrant_edge.py").write_text("raise ImportError('no wheel for this machine')")
        environment, says = {"PYTHONPATH": str(tmp_path)}, "no wheel for this machine"
    else:
        starting = f"import tempfile; tempfile.tempdir = {str(tmp_path / 'nowhere')!r}"
        (tmp_path / "sitecustomize.py").write_text(starting)
        environment, says = {"PYTHONPATH": str(tmp_path)}, "there is no place for an embedded Qdrant"
    with serving(MODULE, ["--store-url", url], environment) as child:
        async with channel(child.address) as to_service:
            stub: Stub = patterns_pb2_grpc.PatternServiceStub(to_service)
            await go_live(stub, stored)
            assert (await stub.Retrieve(asking(stored.near("sorting")))).task == "sorting"
        lines = [line for line in child.stderr().splitlines() if "plain matrix" in line]
        assert len(lines) == 1
        assert says in lines[0]
    if lacking == "room":
        ended = await asyncio.to_thread(run_to_end, MODULE, ["--store-url", url, "--qdrant", "/proc/nowhere"])
        assert ended.returncode == 3
        assert ended.stderr.startswith("error: index folder /proc/nowhere")


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        ([], {}, "--store-url (PREMOE_RETRIEVAL_STORE_URL)"),
        (["--store-url", "memory://x", "--qdrant", ":memory:"], {}, "is no place for an index"),
        (["--store-url", "memory://x", "--qdrant", "grpc://q:6334"], {}, "is no place for an index"),
        (["--store-url", "ftp://x"], {}, "unknown scheme 'ftp'"),
        (["--store-url", "memory://x", "--index", "faiss"], {}, "--index"),
        (["--store-url", "memory://x"], {"PREMOE_RETRIEVAL_INDX": "qdrant"}, "PREMOE_RETRIEVAL_INDEX?"),
    ],
)
def test_a_bad_start_is_one_line(arguments: list[str], environment: dict[str, str], says: str) -> None:
    ended = run_to_end(MODULE, arguments, environment)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ")
    assert len(ended.stderr.splitlines()) == 1
    assert says in ended.stderr


def test_help_names_every_setting() -> None:
    ended = run_to_end(MODULE, ["--help"])
    assert ended.returncode == 0
    for words in ("premoe-retrieval", "--store-url", "--qdrant", "--on-unknown", "PREMOE_RETRIEVAL_"):
        assert words in ended.stdout
