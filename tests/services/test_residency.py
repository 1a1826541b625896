"""A real worker that keeps listed tasks resident: the mounted file, the live set, and traffic in between."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from premoe.patterns.v1 import patterns_pb2
from premoe.worker.v1 import worker_pb2, worker_pb2_grpc
from premoe_servicekit.clients import blocking_channel
from support.mesh import BUDGET
from support.processes import Child, serving

from premoe_runtime.formats.pattern import Pattern
from premoe_runtime.offline.patterns.library import find_set, put_set
from premoe_runtime.storage import open_store

pytestmark = pytest.mark.timeout(300)  # a worker imports torch

Stub = worker_pb2_grpc.WorkerServiceStub


def mount(folder: Path, *tasks: str) -> None:
    """Write the file as the kubelet does: a new folder, and one rename of the link ``..data``."""
    data = folder / f"..{os.urandom(4).hex()}"
    data.mkdir(parents=True)
    (data / "residency.json").write_text(json.dumps({"preload": tasks}))
    if not (folder / "residency.json").is_symlink():
        (folder / "residency.json").symlink_to("..data/residency.json")
    (folder / "..data_tmp").symlink_to(data.name)
    (folder / "..data_tmp").replace(folder / "..data")


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.1)


def swapped(worker: Stub, pattern_id: str) -> int:
    """Experts that a request under this pattern has to wait for."""
    request = worker_pb2.GenerateRequest(
        prompt=worker_pb2.Prompt(text="abc"), sampling=worker_pb2.Sampling(max_tokens=2)
    )
    request.pattern.decision = patterns_pb2.DECISION_SPECIALIST
    request.pattern.pattern_id = pattern_id
    events = list(worker.Generate(request))
    assert events[-1].WhichOneof("event") == "finished"
    return events[0].started.swap.blobs_loaded


def resident(worker: Stub, experts: list[set[int]]) -> bool:
    answer = worker.GetResidency(worker_pb2.GetResidencyRequest())
    return all(wanted <= set(layer.slots) for wanted, layer in zip(experts, answer.layers, strict=True))


def kept(store_url: str, task: str) -> list[set[int]]:
    """The experts that the task's pattern keeps in each layer."""
    store = open_store(store_url)
    ranking = Pattern.load(store.get, find_set(store).member(task).pattern_id).ranking
    return [set(row[: int(BUDGET.split("/")[1])].tolist()) for row in ranking]


@pytest.fixture
def own_store(store_url: str, tmp_path: Path) -> str:
    """A copy of the store, whose live set a test may change."""
    shutil.copytree(store_url.removeprefix("file://"), tmp_path / "store")
    return (tmp_path / "store").as_uri()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    mount(tmp_path / "residency", "capitals")
    return tmp_path / "residency"


@pytest.fixture
def started(own_store: str, folder: Path) -> Iterator[tuple[Stub, Child]]:
    with ExitStack() as stack:
        store = stack.enter_context(serving("premoe_expert_store.cli", ["--store-url", own_store]))
        retrieval = stack.enter_context(serving("premoe_retrieval.cli", ["--store-url", own_store]))
        arguments = ["--store", store.address, "--retrieval", retrieval.address, "--budget", BUDGET, "--threads", "1"]
        arguments += ["--spare", "0"]  # two tasks never fit at once
        variables = {"PREMOE_WORKER_RESIDENCY_DIR": str(folder), "OMP_WAIT_POLICY": "PASSIVE"}
        child = stack.enter_context(serving("premoe_worker.cli", arguments, variables))
        yield Stub(stack.enter_context(blocking_channel(child.address))), child


def test_listed_tasks_come_in_unasked_and_come_back(started: tuple[Stub, Child], own_store: str, folder: Path) -> None:
    worker, child = started
    capitals, digits = kept(own_store, "capitals"), kept(own_store, "digits")
    ids = {member.task: member.pattern_id for member in find_set(open_store(own_store)).members}
    wait_for(lambda: resident(worker, capitals))
    assert swapped(worker, ids["capitals"]) == 0
    # A request of another task takes the room, and the listed one comes back without anybody asking.
    assert swapped(worker, ids["digits"]) > 0
    wait_for(lambda: resident(worker, capitals))
    # Another list, by the kubelet's swap of links; a broken one changes nothing.
    mount(folder, "digits")
    wait_for(lambda: "tasks to preload: digits" in child.stderr())
    wait_for(lambda: resident(worker, digits))
    (folder / "..data" / "residency.json").write_text("{")
    wait_for(lambda: "still preloading digits" in child.stderr())
    assert resident(worker, digits)
    assert "preloaded pattern" in child.stderr()


def test_a_new_live_set_is_followed(started: tuple[Stub, Child], own_store: str) -> None:
    worker, _ = started
    store = open_store(own_store)
    old = find_set(store)
    wait_for(lambda: resident(worker, kept(own_store, "capitals")))
    before = kept(own_store, "capitals")
    # The same task with another task's experts.
    others = {"capitals": old.member("digits").pattern_id, "digits": old.member("capitals").pattern_id}
    members = tuple(
        member.model_copy(update={"pattern_id": others.get(member.task, member.pattern_id)}) for member in old.members
    )
    document = old.document.model_copy(update={"members": members})
    put_set(store, old.under(document), live=True)
    assert kept(own_store, "capitals") != before
    wait_for(lambda: resident(worker, kept(own_store, "capitals")))


def test_a_worker_starts_before_retrieval_and_before_any_live_set(store_url: str, tmp_path: Path) -> None:
    """The full model is served without knowing a pattern; the expert store may come a little later, too."""
    with ExitStack() as stack:
        store = stack.enter_context(serving("premoe_expert_store.cli", ["--store-url", store_url]))
        experts = "16"
        arguments = ["--store", store.address, "--retrieval", "127.0.0.1:1", "--budget", BUDGET, "--slots", experts]
        child = stack.enter_context(serving("premoe_worker.cli", [*arguments, "--threads", "1"]))
        worker = Stub(stack.enter_context(blocking_channel(child.address)))
        request = worker_pb2.GenerateRequest(
            prompt=worker_pb2.Prompt(text="abc"), sampling=worker_pb2.Sampling(max_tokens=2)
        )
        request.pattern.decision = patterns_pb2.DECISION_FULL
        assert list(worker.Generate(request))[-1].WhichOneof("event") == "finished"
