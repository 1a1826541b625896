"""`premoe patterns` beside running services: filling an index, and the life of a set on a mesh."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result
from premoe.patterns.v1 import patterns_pb2, patterns_pb2_grpc
from premoe_local.cli import command as premoe
from premoe_local.mesh import Mesh
from premoe_servicekit.clients import blocking_channel
from premoe_servicekit.errors import rpc_errors
from support.blob_pack import write_blob_pack
from support.certificates import Authority, tls_folder
from support.mesh import ALPHABETS, mesh_over, prepare_store, prompts
from support.metrics import scrape
from support.ports import stable_port
from support.processes import serving
from support.servers import s3_server
from support.stored_patterns import FAR, WEIGHTS, store_set

from premoe_runtime.formats.errors import NotFound
from premoe_runtime.formats.live import go_live, live_path
from premoe_runtime.formats.pattern_set import Member, set_paths
from premoe_runtime.offline.patterns.library import find_set, put_set
from premoe_runtime.storage import open_store


def run(*arguments: object) -> Result:
    return CliRunner().invoke(premoe, ["patterns", *(str(argument) for argument in arguments)])


def document(*arguments: object) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_an_index_is_filled_live_sets_first_and_again_where_it_was_stopped(tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'store'}"
    store = open_store(url)
    other, before, live = (store_set(store, seed=seed) for seed in range(3))
    for now, one in enumerate((before, live)):
        go_live(store.get, store.put, WEIGHTS, one.set_id, float(now))
    arguments = ["--store-url", url, "--qdrant", str(tmp_path / "index")]
    with serving("premoe_retrieval.cli", arguments) as child:
        told = document("reindex", url, "--retrieval", child.address)
        assert [*told["already"], *told["indexed"]] == [live.set_id, before.set_id, other.set_id]
        assert told["exemplars"] == 21 * len(told["indexed"])
    with serving("premoe_retrieval.cli", arguments) as child:
        unused, damaged = store_set(store, seed=3), store_set(store, seed=4)
        store.delete(set_paths(damaged.set_id)[1])
        ended = run("reindex", url, "--retrieval", child.address)
        assert ended.exit_code == 5
        assert "indexed 1 sets with 21 exemplars; 3 were there already" in ended.stdout
        noted, error = ended.stderr.splitlines()
        assert noted.startswith("note: ")
        assert error.startswith("error: 1 of 5 sets are not whole")
        assert document("rm", url, other.set_id, "--retrieval", child.address)["removed"][0]["set_id"] == other.set_id
        document("gc", url, "--sets", "--days", 0, "--delete", "--retrieval", child.address)
        with blocking_channel(child.address) as channel:
            stub = patterns_pb2_grpc.PatternServiceStub(channel)
            existed = {
                one.set_id: stub.DeleteSet(patterns_pb2.DeleteSetRequest(set_id=one.set_id)).existed
                for one in (other, unused, before)
            }
        assert existed == {other.set_id: False, unused.set_id: False, before.set_id: True}
        live_one = run("rm", url, live.set_id, "--retrieval", child.address)
        assert (live_one.exit_code, "is live" in live_one.stderr) == (4, True)
    stopped = run("reindex", url, "--retrieval", f"127.0.0.1:{stable_port()}")
    assert (stopped.exit_code, "does not answer" in stopped.stderr) == (6, True)
    assert stopped.stderr.count("\n") == 1
    half = run("reindex", url, "--retrieval", "127.0.0.1:1", "--tls-cert", tmp_path / "cert.pem")
    assert (half.exit_code, "go together" in half.stderr) == (2, True)


def test_a_model_that_was_packed_anew_makes_its_live_set_stale(tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'store'}"
    store = open_store(url)
    stored = store_set(store)
    go_live(store.get, store.put, WEIGHTS, stored.set_id, 0.0)
    weights_id = write_blob_pack(store).manifest.weights_id
    arguments = ["--store-url", url, "--index", "memory", "--metrics-port", "0", "--stale-check-s", "0.1"]
    with serving("premoe_retrieval.cli", arguments) as child, blocking_channel(child.address) as channel:
        metrics = str(child.ready["metrics"])
        _await(lambda: scrape(metrics).value("premoe:retrieval_stale_sets") == 1)
        stub = patterns_pb2_grpc.PatternServiceStub(channel)
        request = patterns_pb2.RetrieveRequest(weights_id=weights_id, signature=FAR.tolist())
        with pytest.raises(NotFound, match=f"that of weights {WEIGHTS[:16]} is stale") as caught, rpc_errors("it"):
            stub.Retrieve(request)
        assert caught.value.reason == "NO_LIVE_SET"
        fresh = store_set(store, weights_id=weights_id)
        assert document("set-live", url, fresh.set_id)["set_id"] == fresh.set_id
        assert stub.Retrieve(request).set_id == fresh.set_id
        assert run("gc", url, "--stale", "--days", 0, "--delete").exit_code == 0
        _await(lambda: scrape(metrics).value("premoe:retrieval_stale_sets") == 0)
        assert child.stderr().count("live sets are stale") == 1


@pytest.mark.services
def test_sets_in_s3_go_live_are_rolled_back_and_cleaned_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server(tmp_path) as s3:
        for name, value in s3.env.items():
            monkeypatch.setenv(name, value)
        url = f"{s3.url}/models"
        store = open_store(url)
        first, second, unused = (store_set(store, seed=seed) for seed in range(3))
        for one in (first, second):
            document("set-live", url, one.set_id)
        assert document("rollback", url) == {
            "set_id": first.set_id,
            "weights_id": WEIGHTS,
            "withdrawn": second.set_id,
        }
        assert [one["state"] for one in document("history", url)["sets"]] == ["withdrawn", "live"]
        assert document("gc", url, "--sets")["objects"] == [], "all of it is young"
        # The server counts in seconds.
        _await(lambda: len(document("gc", url, "--sets", "--days", 0)["objects"]) == 2 + len(unused.patterns))
        document("gc", url, "--sets", "--days", 0, "--delete")
        assert {one["set_id"] for one in document("list", url)["sets"]} == {first.set_id, second.set_id}
        assert run("rollback", url, "--to", second.set_id[:16]).exit_code == 0
    gone = run("history", url)
    assert (gone.exit_code, gone.stderr.count("\n")) == (6, 1), gone.output


def test_under_mutual_tls_administrators_may(tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'store'}"
    stored = store_set(open_store(url))
    authority = Authority()
    server = tls_folder(tmp_path / "server", authority, "localhost", uris=["premoe://r/retrieval"])
    arguments = ["--store-url", url, "--index", "memory", "--tls-release", "r", *server.arguments]

    def called(role: str, command: str, *more: str) -> Result:
        folder = tls_folder(tmp_path / role, authority, role, uris=[f"premoe://r/{role}"])
        tls = ["--tls-server-name", "localhost", *folder.arguments]
        return run(command, url, *more, "--retrieval", child.address, *tls)

    with serving("premoe_retrieval.cli", arguments) as child:
        for command in (["reindex"], ["shadow", stored.set_id]):
            refused = called("worker", *command)
            assert (refused.exit_code, "may not call" in refused.stderr) == (8, True), refused.output
            assert refused.stderr.count("\n") == 1
        assert called("admin", "reindex").stdout.startswith("indexed 1 sets with 21 exemplars")
        empty = called("admin", "shadow", stored.set_id)
        assert (empty.exit_code, "records none" in empty.stderr) == (3, True)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return prepare_store(tmp_path_factory.mktemp("life"))


@pytest.mark.timeout(600)  # every mesh is four processes, and a worker imports torch
def test_a_set_is_tried_goes_live_and_is_rolled_back_while_a_mesh_serves(url: str) -> None:
    store = open_store(url)
    first = find_set(store)  # live, and whose pack is here
    # Its tasks are the same, but nothing is near enough to be recognised.
    deaf = first.document.model_copy(
        update={"members": tuple(_deaf(member) for member in first.members), "exemplars_digest": ""}
    )
    second = first.under(deaf)
    put_set(store, second)
    # A live set of a model that was here before must not stand in the way.
    foreign = store_set(store)
    go_live(store.get, store.put, WEIGHTS, foreign.set_id, 0.0)
    with mesh_over(url, record_signatures=100) as mesh:
        silent = run("shadow", url, second.set_id, "--retrieval", mesh.retrieval_address)
        assert (silent.exit_code, "no request came in" in silent.stderr) == (3, True)
        before = [ask(mesh, prompt) for task in ALPHABETS for prompt in prompts(task, 2, seed=3)]
        told = document("shadow", url, second.set_id[:16], "--retrieval", mesh.retrieval_address)
        recognised = before.count("specialist")
        assert recognised
        assert told["decided_by"] == {first.set_id: len(before)}
        assert (told["signatures"], told["no_longer_recognised"]) == (len(before), recognised)
        assert told["same"] == len(before) - recognised
        shown = run("shadow", url, second.set_id, "--retrieval", mesh.retrieval_address, "--examples", 1).stdout
        assert f"{len(before) - recognised} of {len(before)} decided alike" in shown
        document("set-live", url, second.set_id)
        _await(lambda: ask(mesh, prompts("digits", 1, seed=3)[0]) == "generalist")
        assert document("rollback", url)["set_id"] == first.set_id
        _await(lambda: [ask(mesh, prompt) for task in ALPHABETS for prompt in prompts(task, 2, seed=3)] == before)
        # What retrieval cannot try is named, and nothing that serves is touched.
        refused = run("shadow", url, foreign.set_id, "--retrieval", mesh.retrieval_address)
        assert (refused.exit_code, "set is of another model" in refused.stderr) == (3, True)
        assert refused.stderr.count("\n") == 1
        stale = run("set-live", url, foreign.set_id)
        assert (stale.exit_code, "is stale" in stale.stderr) == (4, True)
        # The console says what a model without a live set lacks.
        store.delete(live_path(first.weights_id))
        page = f"{mesh.url}/premoe/v1/patterns?model={mesh.model_name}"
        _await(lambda: f"that of weights {WEIGHTS[:16]} is stale" in httpx.get(page, timeout=120).text)


def _deaf(member: Member) -> Member:
    return member.model_copy(update={"cutoff": 2.0}) if member.exemplars else member


def ask(mesh: Mesh, prompt: str) -> str:
    """What was decided for a prompt."""
    body = {"model": mesh.model_name, "messages": [{"role": "user", "content": prompt}], "max_tokens": 1}
    answer = httpx.post(f"{mesh.url}/v1/chat/completions", json=body, timeout=120)
    answer.raise_for_status()
    return str(answer.json()["premoe"]["decision"])


def _await(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < until, "it did not come to it"
        time.sleep(0.1)
