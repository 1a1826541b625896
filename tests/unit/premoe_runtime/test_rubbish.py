"""What a store may lose, and what it keeps whoever publishes meanwhile."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable

import pytest
from support.blob_pack import write_blob_pack
from support.stored_patterns import WEIGHTS, StoredSet, store_set

from premoe_runtime.formats.errors import CorruptData, NotFound
from premoe_runtime.formats.live import go_live, live_path
from premoe_runtime.formats.pattern import pattern_path
from premoe_runtime.formats.pattern_set import set_paths
from premoe_runtime.offline.patterns import library
from premoe_runtime.offline.patterns.rubbish import Choice, Sweeper
from premoe_runtime.storage import Store, open_store

LATER = time.time() + 3600


@pytest.fixture
def store() -> Store:
    return open_store(f"memory://{uuid.uuid4()}")


def live(store: Store, *sets: StoredSet) -> None:
    for number, one in enumerate(sets):
        go_live(store.get, store.put, one.pattern_set.weights_id, one.set_id, float(number))


def paths_of(stored: StoredSet) -> set[str]:
    patterns = {pattern_path(pattern.pattern_id) for pattern in stored.patterns.values()}
    return {*set_paths(stored.set_id), *patterns}


def lying(store: Store) -> set[str]:
    return {info.path for kind in ("sets", "patterns", "live") for info in store.list(kind)}


def found(store: Store, **choice: object) -> list[str]:
    return [info.path for info in Sweeper(store, Choice(**{"before": LATER, **choice})).find()]  # type: ignore[arg-type]


def removed(store: Store, **choice: object) -> set[str]:
    sweeper = Sweeper(store, Choice(**{"before": LATER, **choice}))  # type: ignore[arg-type]
    return {info.path for info in sweeper.remove(sweeper.find())}


def test_only_what_no_set_names_goes_unless_more_is_asked(store: Store) -> None:
    first, second, never, removed_one = (store_set(store, seed=seed) for seed in range(4))
    live(store, first, second)
    for path in set_paths(removed_one.set_id):
        store.delete(path)
    half = "sets/" + "f" * 64 + ".safetensors"
    store.put(half, b"exemplars without a document")
    rubbish = {half, *paths_of(removed_one)} - set(set_paths(removed_one.set_id))
    assert set(found(store)) == rubbish
    assert set(found(store, sets=True)) == rubbish | paths_of(never)
    assert found(store, before=time.time() - 3600, sets=True) == []
    before = lying(store)
    assert removed(store) == rubbish
    assert lying(store) == before - rubbish
    assert removed(store, sets=True) == paths_of(never)
    assert lying(store) == {live_path(WEIGHTS)} | paths_of(first) | paths_of(second)
    assert removed(store, sets=True) == set()


def test_patterns_that_another_set_names_stay(store: Store) -> None:
    kept, never = store_set(store), store_set(store, neighbours=3)
    assert {one.pattern_id for one in kept.patterns.values()} == {one.pattern_id for one in never.patterns.values()}
    live(store, kept)
    assert removed(store, sets=True) == set(set_paths(never.set_id))


def test_stale_sets_go_with_their_pointers(store: Store) -> None:
    old = store_set(store)
    live(store, old)
    assert found(store, stale=True) == [], "without a pack nobody can tell"
    fresh = store_set(store, weights_id=write_blob_pack(store).manifest.weights_id)
    live(store, fresh)
    assert found(store) == []
    assert set(found(store, stale=True)) == {live_path(WEIGHTS)} | paths_of(old)
    assert found(store, stale=True)[0] == live_path(WEIGHTS), "who names goes before who is named"
    assert removed(store, stale=True) == {live_path(WEIGHTS)} | paths_of(old)
    assert lying(store) == {live_path(fresh.pattern_set.weights_id)} | paths_of(fresh)


@pytest.mark.parametrize("path", ["document", "pointer"])
def test_where_damage_hides_what_is_wanted_nothing_goes(store: Store, path: str) -> None:
    stored = store_set(store)
    live(store, stored)
    store.put("patterns/" + "e" * 64 + ".safetensors", b"orphan")
    store.put(set_paths(stored.set_id)[0] if path == "document" else live_path(WEIGHTS), b"{")
    with pytest.raises(CorruptData, match=r"patterns (rm|set-live)"):
        found(store)
    assert "patterns/" + "e" * 64 + ".safetensors" in lying(store)


class Meddled:
    """A store in which something happens just before, or just after, the first deletion."""

    def __init__(self, store: Store, before: Callable[[], None] | None = None, after: Callable[[], None] | None = None):
        delete = store.delete
        todo = [(before, after)]

        def meddling(path: str) -> None:
            first, last = todo.pop() if todo else (None, None)
            if first is not None:
                first()
            delete(path)
            if last is not None:
                last()

        store.delete = meddling  # type: ignore[method-assign]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_set_that_goes_live_meanwhile_stays_whole(store: Store, when: str) -> None:
    never = store_set(store)
    before = lying(store)
    Meddled(store, **{when: lambda: live(store, never)})
    assert removed(store, sets=True) == set()
    assert lying(store) == before | {live_path(WEIGHTS)}
    library.check_whole(store, never.pattern_set)


@pytest.mark.parametrize("when", ["before", "after"])
def test_patterns_that_a_new_set_names_meanwhile_stay(store: Store, when: str) -> None:
    gone = store_set(store)
    for path in set_paths(gone.set_id):
        store.delete(path)

    def publish() -> None:
        for path, data in zip(set_paths(gone.set_id), gone.pattern_set.to_files(), strict=True):
            store.put(path, data)

    Meddled(store, **{when: publish})
    assert removed(store) == set()
    assert lying(store) == paths_of(gone)


def test_who_publishes_after_the_last_look_is_told(store: Store) -> None:
    gone = store_set(store)
    for path in set_paths(gone.set_id):
        store.delete(path)
    assert removed(store) == lying_patterns(gone)
    with pytest.raises(NotFound, match="build the set again"):
        library.put_set(store, gone.pattern_set, live=True)
    assert library.live_set_id(store, WEIGHTS) is None


def lying_patterns(stored: StoredSet) -> set[str]:
    return paths_of(stored) - set(set_paths(stored.set_id))


def test_a_sweep_that_was_stopped_is_started_anew(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = store_set(store)
    live(store, kept)
    rubbish = paths_of(store_set(store, seed=1)) | paths_of(store_set(store, seed=2))
    monkeypatch.setattr("premoe_runtime.offline.patterns.rubbish.TOGETHER", 2)
    sweeper = Sweeper(store, Choice(LATER, sets=True))
    steps = sweeper.remove(sweeper.find())
    gone = {next(steps).path for _ in range(3)}
    del steps
    left = rubbish & lying(store)
    assert gone | left <= rubbish
    assert left
    assert removed(store, sets=True) == left
    assert lying(store) == {live_path(WEIGHTS)} | paths_of(kept)
