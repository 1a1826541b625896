"""The life of a pattern set on the command line: going live, rolling back, looking back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from premoe_local.cli import command as premoe
from support.stored_patterns import TASKS, WEIGHTS, StoredSet, store_set

from premoe_runtime.formats.live import LivePointer, live_path
from premoe_runtime.formats.pattern import pattern_path
from premoe_runtime.formats.pattern_set import set_paths
from premoe_runtime.storage import Store, open_store

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
        (second, "live", True),
        (third, "withdrawn", True),
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
