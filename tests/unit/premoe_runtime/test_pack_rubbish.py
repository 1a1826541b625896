"""What a store may lose besides patterns: nothing that anybody refers to, whoever packs meanwhile."""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.blob_pack import BlobPack, write_blob_pack
from support.stored_patterns import store_set

from premoe_runtime.formats.errors import Conflict
from premoe_runtime.formats.live import go_live
from premoe_runtime.offline.patterns.rubbish import Choice, Sweeper
from premoe_runtime.packs.rubbish import Folder, Mark, Plan, References, StoredPack, Survey, plan
from premoe_runtime.packs.staging import Staging, is_complete
from premoe_runtime.packs.sweep import Sweep
from premoe_runtime.storage import ObjectInfo, Store, open_store

LATER = time.time() + 3600
NOBODY = References()

IDS = st.sampled_from(["a", "b", "c", "d"])
TIMES = st.integers(0, 10).map(float)
PACKS = st.builds(
    lambda name, modified, whole, weights: StoredPack(
        Folder(f"models/{name}", 7, modified), whole, name if whole and weights else "", weights if whole else ""
    ),
    IDS,
    TIMES,
    st.booleans(),
    st.sampled_from(["", "u", "v", "w"]),
)
SURVEYS = st.builds(
    lambda packs, staged, marks, busy, files: Survey(
        tuple(packs),
        tuple(Folder(f"staging/{key}", 5, modified) for key, modified in staged.items()),
        tuple(Mark(f"sources/{key}.json", 1, modified, model_id) for key, (model_id, modified) in marks.items()),
        busy,
        tuple(ObjectInfo(f"sets/{number}#1", 3, modified=modified) for number, modified in enumerate(files)),
    ),
    st.lists(PACKS, unique_by=lambda pack: pack.folder.path, max_size=4),
    st.dictionaries(IDS, TIMES),
    st.dictionaries(st.sampled_from("klmn"), st.tuples(st.sampled_from(["", "a", "b", "c", "d", "x"]), TIMES)),
    st.frozensets(IDS),
    st.lists(TIMES, max_size=3),
)
REFERENCES = st.builds(
    References,
    st.dictionaries(st.sampled_from(["u", "v", "w"]), st.just("set 1")),
    st.dictionaries(IDS, st.just("--keep")),
)


@given(SURVEYS, REFERENCES, st.integers(0, 11).map(float), st.booleans())
def test_whatever_is_referred_to_or_young_survives(
    survey: Survey, references: References, before: float, packs: bool
) -> None:
    try:
        found = plan(survey, references, before=before, packs=packs)
    except Conflict:
        assert packs
        assert not any(references.of(pack) for pack in survey.packs if pack.has_manifest)
        return
    gone = {one.path: one for one in found.rubbish}
    assert len(gone) == len(found.rubbish)
    assert all(one.modified < before for one in found.rubbish)
    stay = {one.pack.folder.path for one in found.kept}
    assert not stay & gone.keys()
    for pack in survey.packs:
        marked = [mark.modified for mark in survey.marks if mark.model_id and mark.model_id in pack.names]
        young = max([pack.folder.modified, *marked]) >= before
        if pack.has_manifest:
            assert (pack.folder.path in gone) != (pack.folder.path in stay)
            must = bool(references.of(pack)) or not packs or not pack.weights_id or young
            assert (pack.folder.path in stay) == must
        else:
            assert (pack.folder.path in gone) == (not young)
    if any(one.kind == "pack" for one in found.rubbish):
        assert packs
        assert stay, "one is left"
    for area in survey.staged:
        assert (area.path in gone) == (area.modified < before and area.name not in survey.busy)
    for mark in survey.marks:
        whole = any(mark.model_id in one.pack.names for one in found.kept)
        assert (mark.path in gone) == (mark.modified < before and not whole)


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(f"memory://{uuid.uuid4()}" if request.param == "memory" else str(tmp_path / "store"))


def sweep(store: Store, references: References = NOBODY, *, before: float = LATER, packs: bool = True) -> Sweep:
    return Sweep(store, lambda: references, before=before, packs=packs)


def removed(sweep: Sweep) -> set[str]:
    return {one.path for one in sweep.remove(sweep.find().rubbish)}


def mark(store: Store, key: str, pack: BlobPack) -> str:
    Staging(store, key).mark(pack.manifest)
    return f"sources/{key}.json"


def names(store: Store) -> set[str]:
    return {info.path for info in store.list()}


def folder(pack: BlobPack) -> str:
    return f"models/{pack.model_id}"


def small_pack(store: Store, seed: int) -> BlobPack:
    return write_blob_pack(store, file_bytes=64, seed=seed)


def test_packs_go_only_when_asked_for_and_with_their_marks(store: Store) -> None:
    used, unused = small_pack(store, 1), small_pack(store, 2)
    used_mark, unused_mark = mark(store, "k1", used), mark(store, "k2", unused)
    needs = References(weights={used.manifest.weights_id: "set 1"})
    assert sweep(store, needs, packs=False).find().rubbish == ()
    assert sweep(store, needs, before=time.time() - 3600).find().rubbish == ()
    found = sweep(store, needs).find()
    assert {one.path: one.kind for one in found.rubbish} == {folder(unused): "pack", unused_mark: "source mark"}
    assert [(one.pack.folder.path, one.because) for one in found.kept] == [(folder(used), "set 1")]
    size = sum(info.size for info in store.list(folder(unused)))
    assert found.rubbish[0].size == size
    told: list[int] = []
    gone = list(sweep(store, needs).remove(found.rubbish, told.append))
    assert gone == list(found.rubbish)
    assert sum(told) + len(store.list(folder(unused))) >= size
    assert {path.rpartition("/")[0].split("/")[0] for path in names(store)} == {"models", "sources"}
    assert used_mark in names(store)
    assert is_complete(store, used.model_id)
    assert store.list_names("models") == (used.model_id,)


def test_a_pack_that_is_named_stays_whatever_its_weights(store: Store) -> None:
    one, two = small_pack(store, 1), small_pack(store, 2)
    assert removed(sweep(store, References(models={one.model_id: "--keep"}))) == {folder(two)}


def test_the_last_packs_do_not_go_because_nobody_was_named(store: Store) -> None:
    small_pack(store, 1), small_pack(store, 2)
    with pytest.raises(Conflict, match="any of the 2 packs here, and none would be left"):
        sweep(store).find()


def test_a_pack_whose_manifest_is_damaged_stays(store: Store) -> None:
    pack = small_pack(store, 1)
    store.put(pack.path("manifest.json"), b"{")
    found = sweep(store).find()
    assert found.rubbish == ()
    assert "premoe pack verify" in found.kept[0].because


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours runs after it."""


def test_stopped_anywhere_no_pack_looks_whole_and_the_next_run_goes_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, unused = small_pack(store, 1), small_pack(store, 2)
    mark(store, "k2", unused)
    needs = References(models={used.model_id: "--keep"})
    delete = type(store).delete
    for step in range(1, 20):
        left = [step]

        def dying(self: Store, path: str, left: list[int] = left) -> None:
            if not left[0]:
                raise Killed
            left[0] -= 1
            delete(self, path)

        with monkeypatch.context() as patched:
            patched.setattr(type(store), "delete", dying)
            try:
                removed(sweep(store, needs))
            except Killed:
                assert not store.exists(unused.path("manifest.json"))
                assert Staging(store, "k2").published() is None
            else:
                break
        # Without --packs: what is a half now goes in any case.
        assert sweep(store, needs, packs=False).find().rubbish
        small_pack(store, 2)
    assert step > 4
    removed(sweep(store, needs, packs=False))
    assert {path for path in names(store) if used.model_id not in path} == set()


def test_a_set_that_comes_meanwhile_keeps_its_pack(store: Store) -> None:
    used, unused = small_pack(store, 1), small_pack(store, 2)
    patterns = Sweeper(store, Choice(LATER))

    def needs() -> References:
        return References(patterns.weights(), {used.model_id: "--keep"})

    def publish() -> None:
        made = store_set(store, weights_id=unused.manifest.weights_id)
        go_live(store.get, store.put, unused.manifest.weights_id, made.set_id, 1.0)

    found = Sweep(store, needs, before=LATER, packs=True).find()
    assert folder(unused) in {one.path for one in found.rubbish}
    delete, todo = store.delete, [publish]

    def publishing(path: str) -> None:
        delete(path)
        if todo:
            todo.pop()()

    store.delete = publishing  # type: ignore[method-assign]
    assert list(Sweep(store, needs, before=LATER, packs=True).remove(found.rubbish)) == []
    assert is_complete(store, unused.model_id)


def test_a_pack_that_is_packed_again_meanwhile_stays(store: Store) -> None:
    used, unused = small_pack(store, 1), small_pack(store, 2)
    needs = References(models={used.model_id: "--keep"})
    cut = time.time() + 1
    found = sweep(store, needs, before=cut).find()
    again = sweep(store, needs, before=time.time() - 3600)  # as if it had been written just now
    assert folder(unused) in {one.path for one in found.rubbish}
    assert list(again.remove(found.rubbish)) == []


def test_what_killed_packers_left_goes_without_asking(store: Store) -> None:
    half = small_pack(store, 1)
    store.delete(half.path("manifest.json"))
    lost = mark(store, "k1", half)
    store.put("sources/odd.json", b'{"model_id": "../.."}')
    store.put("staging/k3/pack/experts/layer-000.safetensors", b"123")
    store.put("staging/k3/records/experts/layer-000.safetensors.json", b"{}")
    assert sweep(store, before=time.time() - 3600).find() == Plan((), ())
    wanted = {folder(half), "staging/k3", lost, "sources/odd.json"}
    found = sweep(store, packs=False).find()
    assert {one.path for one in found.rubbish} == wanted
    assert {one.path: one.size for one in found.rubbish}["staging/k3"] == 5
    assert removed(sweep(store, packs=False)) == wanted
    assert names(store) == set()


def test_half_a_pack_that_a_young_mark_names_stays() -> None:
    half = StoredPack(Folder("models/a", 7, 1.0), has_manifest=False)
    survey = Survey((half,), (), (Mark("sources/k.json", 1, 9.0, "a"),))
    assert plan(survey, NOBODY, before=5.0, packs=True).rubbish == ()
    assert len(plan(survey, NOBODY, before=10.0, packs=True).rubbish) == 2


def test_a_staging_area_that_a_process_writes_stays(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put("staging/k1/pack/one", b"1")
    store.put("staging/k2/pack/one", b"1")
    found = sweep(store).find().rubbish
    with open(tmp_path / "staging/k1/lock#0", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert {one.path for one in sweep(store).find().rubbish} == {"staging/k2"}
        assert [one.path for one in sweep(store).remove(found)] == ["staging/k2"], "it was locked after the first look"
    assert names(store) == {"staging/k1/pack/one"}
    assert removed(sweep(store)) == {"staging/k1"}
    assert not (tmp_path / "staging").exists()


def test_files_that_no_listing_shows_are_found(tmp_path: Path) -> None:
    """A local writer that was killed leaves its temporary file, which may be large."""
    store = open_store(str(tmp_path))
    pack = small_pack(store, 1)
    places = [f"staging/k1/pack/experts/layer-000.safetensors#{2**40}", f"{folder(pack)}/checks.safetensors#7"]
    for place in places:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(bytes(100))
        os.utime(tmp_path / place, (1.0, 1.0))
    cut = time.time() - 3600
    found = sweep(store, before=cut, packs=False).find()
    assert {(one.kind, one.path, one.size) for one in found.rubbish} == {
        ("staging area", "staging/k1", 100),
        ("unfinished file", places[1], 100),
    }
    assert len(removed(sweep(store, before=cut, packs=False))) == 2
    assert list(tmp_path.rglob("*#*")) == []
    assert is_complete(store, pack.model_id)
