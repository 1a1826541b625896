"""The life of a pattern set on the command line: going live, rolling back, looking back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from premoe_local.cli import command as premoe
from premoe_local.mesh import running
from premoe_local.mesh_options import MeshOptions
from support.blob_pack import write_blob_pack
from support.stored_patterns import TASKS, WEIGHTS, StoredSet, store_set

from premoe_runtime.formats.errors import NotFound
from premoe_runtime.formats.live import LivePointer, live_path
from premoe_runtime.formats.pattern import pattern_path
from premoe_runtime.formats.pattern_set import set_paths
from premoe_runtime.storage import Store, open_store
from premoe_runtime.storage.local import LocalStore

OTHER_WEIGHTS = "cd" * 32


def run(*arguments: object) -> Result:
    return CliRunner().invoke(premoe, ["patterns", *(str(argument) for argument in arguments)])


def document(*arguments: object) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path / 'store'}"


@pytest.fixture
def store(url: str) -> Store:
    return open_store(url)


@pytest.fixture
def sets(url: str, store: Store) -> list[StoredSet]:
    """Three sets that went live one after another."""
    made = [store_set(store, seed=seed) for seed in range(3)]
    for one in made:
        document("set-live", url, one.set_id)
    return made


def live(store: Store, weights_id: str = WEIGHTS) -> str:
    return LivePointer.load(store.get, weights_id).set_id


def test_rolling_back_goes_one_further_each_time_and_forward_by_name(
    url: str, store: Store, sets: list[StoredSet]
) -> None:
    first, second, third = (one.set_id for one in sets)
    told = document("rollback", url)
    assert told == {"set_id": second, "weights_id": WEIGHTS, "withdrawn": third}
    assert live(store) == second
    assert document("rollback", url, "--weights", WEIGHTS[:8])["set_id"] == first == live(store)
    assert run("set-live", url, third[:16]).exit_code == 0
    assert document("rollback", url, "--to", second[:16])["set_id"] == second == live(store)
    assert f"set {first} is live again" in run("rollback", url).stdout


def test_history_lists_what_was_live(url: str, store: Store, sets: list[StoredSet]) -> None:
    first, second, third = (one.set_id for one in sets)
    document("rollback", url)
    store.delete(set_paths(first)[0])
    told = document("history", url)
    assert [(one["set_id"], one["state"], one["stored"]) for one in told["sets"]] == [
        (third, "withdrawn", True),
        (second, "live", True),
        (first, "earlier", False),
    ]
    assert told["sets"][0]["tasks"] == list(TASKS)
    assert all(one["since"].endswith("UTC") for one in told["sets"])
    shown = run("history", url).stdout
    assert "withdrawn" in shown
    assert "gone" in shown


def test_a_pointer_of_an_older_version_has_no_history(url: str, store: Store) -> None:
    stored = store_set(store)
    store.put(live_path(WEIGHTS), b'{"set_id": "%s"}' % stored.set_id.encode())
    (only,) = document("history", url)["sets"]
    assert (only["set_id"], only["since"]) == (stored.set_id, None)
    refused = run("rollback", url)
    assert (refused.exit_code, "no other set was live before" in refused.stderr) == (3, True)


def test_what_cannot_be_rolled_back_to_is_one_line_and_changes_nothing(
    url: str, store: Store, sets: list[StoredSet]
) -> None:
    first, second, third = (one.set_id for one in sets)
    never, foreign = store_set(store, seed=7), store_set(store, seed=8, weights_id=OTHER_WEIGHTS)
    store.delete(pattern_path(sets[1].pattern_id("counting")))
    store.delete(set_paths(first)[0])
    document("set-live", url, foreign.set_id)
    refusals = [
        (["rollback", url], 2, "live pattern sets of 2 weights; name one with --weights"),
        (["rollback", url, "--weights", "ff"], 3, "no live pattern set for weights 'ff'"),
        (["rollback", url, "--weights", "ab"], 3, "name another one with --to"),
        (["rollback", url, "--to", never.set_id], 3, "was not live before"),
        (["rollback", url, "--to", third], 3, "was not live before"),
        (["rollback", url, "--to", first], 3, "no set"),
        (["rollback", url, "--to", "zzzz"], 3, "no set 'zzzz'"),
        (["rollback", url, "--to", second, "--weights", "cd"], 2, "belongs to weights"),
        (["rollback", url, "--weights", "cd"], 3, "no other set was live before"),
        (["history", url], 2, "name one with --weights"),
        (["history", f"{url}-none"], 3, "has no live pattern set"),
    ]
    for arguments, code, says in refusals:
        result = run(*arguments)
        assert (result.exit_code, says in result.stderr) == (code, True), (arguments, result.output)
        assert (result.stderr[:7], result.stderr.count("\n")) == ("error: ", 1)
    assert live(store) == third


def test_a_set_of_weights_that_no_pack_has_any_more_is_stale(
    url: str, store: Store, sets: list[StoredSet], tmp_path: Path
) -> None:
    assert not any(one["stale"] for one in document("list", url)["sets"]), "without a pack nobody can tell"
    packed = write_blob_pack(store).manifest.weights_id
    fresh = store_set(store, weights_id=packed)
    listed = run("list", url, "--json")
    assert {one["set_id"]: one["stale"] for one in json.loads(listed.stdout)["sets"]} == {
        **{one.set_id: True for one in sets},
        fresh.set_id: False,
    }
    assert f"note: set {sets[2].set_id[:16]} is stale: it was made with weights {WEIGHTS[:16]}" in listed.stderr
    for arguments in (["set-live", url, sets[0].set_id], ["rollback", url]):
        refused = run(*arguments)
        assert (refused.exit_code, "profile that model and build a set of it" in refused.stderr) == (4, True)
        assert refused.stderr.count("\n") == 1
    assert live(store) == sets[2].set_id
    assert run("set-live", url, fresh.set_id).exit_code == 0
    assert document("show", url)["set_id"] == fresh.set_id, "of two live sets the one that is not stale"
    assert [one["set_id"] for one in document("history", url)["sets"]] == [fresh.set_id], "nor for its history"
    store.delete(live_path(packed))
    missing = pytest.raises(NotFound, match="no live pattern set of this model's weights, only of others")
    with missing, running(MeshOptions(model=url, budget="1/2", spare=0)):
        pass
    elsewhere = f"file://{tmp_path / 'elsewhere'}"
    write_blob_pack(open_store(elsewhere))
    refused = run("rollback", url, "--weights", "ab", "--pack", elsewhere)
    assert (refused.exit_code, "elsewhere" in refused.stderr) == (4, True)


def test_a_set_may_be_for_a_pack_in_another_store(url: str, store: Store, tmp_path: Path) -> None:
    elsewhere = f"file://{tmp_path / 'elsewhere'}"
    weights_id = write_blob_pack(open_store(elsewhere)).manifest.weights_id
    write_blob_pack(store, seed=1)
    stored = store_set(store, weights_id=weights_id)
    assert run("set-live", url, stored.set_id).exit_code == 4
    assert run("set-live", url, stored.set_id, "--pack", elsewhere).exit_code == 0
    assert live(store, weights_id) == stored.set_id


def test_a_damaged_pack_makes_no_set_stale(url: str, store: Store, sets: list[StoredSet]) -> None:
    model_id = write_blob_pack(store).manifest.model_id
    store.put(f"models/{model_id}/manifest.json", b"no json")
    assert not any(one["stale"] for one in document("list", url)["sets"])
    assert run("rollback", url).exit_code == 0


def test_gc_says_what_it_would_delete_and_deletes_it_when_told(url: str, store: Store, sets: list[StoredSet]) -> None:
    never = store_set(store, seed=9)
    store.put("patterns/orphan.safetensors", b"12345")
    told = document("gc", url, "--days", 0)
    assert (told["deleted"], told["bytes"]) == (False, 5)
    assert [one["path"] for one in told["objects"]] == ["patterns/orphan.safetensors"]
    assert run("gc", url).stdout == "0 objects, 0 B; nothing was deleted\n", "it is too young"
    assert "nothing was deleted; --delete does" in run("gc", url, "--days", 0, "--sets").stdout
    told = document("gc", url, "--days", 0, "--sets", "--delete")
    assert {one["path"] for one in told["objects"]} == {
        "patterns/orphan.safetensors",
        *set_paths(never.set_id),
        *(pattern_path(pattern.pattern_id) for pattern in never.patterns.values()),
    }
    assert [one["set_id"] for one in document("list", url)["sets"]] == sorted(one.set_id for one in sets)
    assert document("rollback", url)["set_id"] == sets[1].set_id
    assert run("gc", url, "--days", "nan").exit_code == 2
    store.put(live_path(WEIGHTS), b"{")
    refused = run("gc", url, "--days", 0, "--delete")
    assert (refused.exit_code, refused.stderr.count("\n")) == (5, 1)


def test_a_damaged_pointer_is_named_and_mended_by_going_live(url: str, store: Store, sets: list[StoredSet]) -> None:
    store.put(live_path(WEIGHTS), b'{"set_id": "../../etc"}')
    for arguments in (["rollback", url], ["history", url], ["rm", url, sets[0].set_id]):
        result = run(*arguments)
        assert (result.exit_code, "premoe patterns set-live" in result.stderr) == (5, True), result.output
        assert result.stderr.count("\n") == 1
    listed = run("list", url, "--json")
    assert (listed.exit_code, "is no id" in listed.stderr) == (0, True)
    assert not any(one["live"] for one in json.loads(listed.stdout)["sets"])
    assert run("set-live", url, sets[0].set_id).exit_code == 0
    assert [one["set_id"] for one in document("history", url)["sets"]] == [sets[0].set_id]


@pytest.mark.parametrize("command", ["set-live", "rollback"])
def test_a_set_that_is_removed_just_as_it_goes_live_does_not(
    url: str, store: Store, sets: list[StoredSet], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = LocalStore.put

    def removing(self: LocalStore, path: str, data: bytes) -> None:
        put(self, path, data)
        self.delete(set_paths(sets[1].set_id)[1])

    before = store.get(live_path(WEIGHTS))
    with monkeypatch.context() as patched:
        patched.setattr(LocalStore, "put", removing)
        refused = run(command, url, *([sets[1].set_id] if command == "set-live" else []))
    assert (refused.exit_code, "is not whole" in refused.stderr) == (3, True), refused.output
    assert refused.stderr.count("\n") == 1
    assert store.get(live_path(WEIGHTS)) == before
