"""What breaks in mid-request: one request fails with the fitting status, the worker keeps serving what it has."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import httpx
import pytest
from premoe.patterns.v1 import patterns_pb2
from premoe.worker.v1 import worker_pb2, worker_pb2_grpc
from premoe_local.mesh import Mesh
from premoe_local.processes import Child
from premoe_servicekit.clients import blocking_channel
from premoe_servicekit.errors import rpc_errors
from support.mesh import mesh_over, prepare_store, prompts

from premoe_runtime.formats.errors import Unavailable
from premoe_runtime.formats.live import LivePointer, live_path
from premoe_runtime.formats.pattern import pattern_path
from premoe_runtime.offline.patterns.library import find_set
from premoe_runtime.storage import open_store

pytestmark = pytest.mark.timeout(300)  # every mesh is four processes, and a worker imports torch


def answer(mesh: Mesh, task: str, **fields: object) -> httpx.Response:
    body = {
        "model": mesh.model_name,
        "messages": [{"role": "user", "content": prompts(task, 1, seed=7)[0]}],
        "max_tokens": 3,
        **fields,
    }
    return httpx.post(f"{mesh.url}/v1/chat/completions", json=body, timeout=90)


def killed_while(mesh: Mesh, victim: Child, task: str) -> httpx.Response:
    """The answer to a request during which ``victim`` first hangs, then dies."""
    os.kill(victim.pid, signal.SIGSTOP)
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(answer(mesh, task)))
    asking.start()
    asking.join(timeout=1.0)
    assert asking.is_alive()  # it waits for the victim
    victim.kill()
    asking.join()
    return answers[0]


def generate(mesh: Mesh, pattern_id: str) -> list[worker_pb2.GenerateResponse]:
    choice = worker_pb2.PatternChoice(decision=patterns_pb2.DECISION_SPECIALIST, pattern_id=pattern_id)
    chat = worker_pb2.Chat(messages=[worker_pb2.Message(role="user", content="0123456789")])
    request = worker_pb2.GenerateRequest(
        prompt=worker_pb2.Prompt(chat=chat), sampling=worker_pb2.Sampling(max_tokens=3), pattern=choice
    )
    with blocking_channel(mesh.worker_addresses[0]) as channel, rpc_errors("worker"):
        return list(worker_pb2_grpc.WorkerServiceStub(channel).Generate(request))


def test_retrieval_killed_in_mid_request(store_url: str) -> None:
    ids = {member.task: member.pattern_id for member in find_set(open_store(store_url)).members}
    with mesh_over(store_url) as mesh:
        assert answer(mesh, "digits").status_code == 200
        failed = killed_while(mesh, mesh.retrieval, "capitals")
        assert failed.status_code == 503, failed.text
        assert "retrieval" in failed.json()["error"]["message"]
        assert generate(mesh, ids["digits"])[-1].WhichOneof("event") == "finished"  # its ranking is known here
        with pytest.raises(Unavailable, match="retrieval"):
            generate(mesh, ids["vowels"])
        assert httpx.get(f"{mesh.url}/health").status_code == 200
        with pytest.raises(Unavailable, match="retrieval stopped by signal SIGKILL"):
            mesh.check()


def test_store_killed_in_mid_request(store_url: str) -> None:
    with mesh_over(store_url) as mesh:
        assert answer(mesh, "digits").status_code == 200
        failed = killed_while(mesh, mesh.store, "capitals")
        assert failed.status_code == 503, failed.text
        assert "expert store" in failed.json()["error"]["message"]
        for _ in range(2):
            again = answer(mesh, "digits")  # resident, or still in host memory
            assert again.status_code == 200, again.text
            assert again.json()["premoe"]["decision"] == "specialist"
        assert answer(mesh, "vowels").status_code == 503
        assert answer(mesh, "digits").status_code == 200


def refused_by_server(response: httpx.Response, store_url: str, says: str) -> None:
    """A 5xx that names the fault, gives one hint at most, and no place."""
    error = response.json()["error"]
    assert response.status_code == 500, response.text
    assert says in error["message"]
    assert error["message"].count(";") <= 1
    assert store_url.removeprefix("file://") not in error["message"]


def test_what_the_store_has_lost_is_the_servers_fault(tmp_path: Path) -> None:
    store_url = prepare_store(tmp_path)
    store = open_store(store_url)
    live = find_set(store)
    ids = {member.task: member.pattern_id for member in live.members}
    with mesh_over(store_url) as mesh:
        assert answer(mesh, "digits").status_code == 200
        store.delete(pattern_path(ids["capitals"]))
        for fields in ({}, {"pattern": "capitals"}):
            refused_by_server(answer(mesh, "capitals", **fields), store_url, "there is no pattern")
        store.delete_prefix(f"models/{mesh.manifest.model_id}/experts")
        refused_by_server(answer(mesh, "vowels"), store_url, "is missing in the object store; run premoe pack verify")
        store.put(live_path(mesh.manifest.weights_id), LivePointer(set_id="0" * 64).encode())
        while (broken := answer(mesh, "digits")).status_code == 200:
            time.sleep(0.2)  # retrieval looks at the pointer now and then
        refused_by_server(broken, store_url, "leads nowhere: there is no pattern set")
        assert httpx.get(f"{mesh.url}/health").status_code == 200


def test_a_worker_killed_in_mid_answer_ends_the_stream_with_an_error(store_url: str) -> None:
    with mesh_over(store_url, context_length=1024) as mesh:
        body = {
            "model": mesh.model_name,
            "messages": [{"role": "user", "content": "0123456789"}],
            "max_tokens": 900,
            "temperature": 0,  # a sampled end could come before the kill
            "stream": True,
            "pattern": "generalist",
        }
        with httpx.stream("POST", f"{mesh.url}/v1/chat/completions", json=body, timeout=60) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: ")
            mesh.workers[0].kill()
            rest = [line for line in lines if line]
        assert '"error"' in rest[-1]
        assert "data: [DONE]" not in rest
        assert httpx.post(f"{mesh.url}/v1/chat/completions", json=body, timeout=60).status_code == 503
