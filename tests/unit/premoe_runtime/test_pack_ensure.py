from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.checkpoints import checkpoint
from support.hub import COMMIT, hub

from premoe_runtime.formats.errors import Conflict, InvalidInput, NotFound, PremoeError
from premoe_runtime.packs import ensure
from premoe_runtime.packs.ensure import ensure_pack
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.writer import PackResult, write_pack
from premoe_runtime.storage import LocalStore, Store


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "model", shards=2)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def test_the_second_time_only_the_listing_is_read(source: Path, store: LocalStore) -> None:
    first = ensure_pack(str(source), store)
    read = store.bytes_read
    again = ensure_pack(str(source), store, expect=f"blake3:{first.model_id}")
    assert again == first
    manifest_bytes = len(store.get(f"models/{first.model_id}/manifest.json"))
    assert store.bytes_read - read <= 2 * manifest_bytes


def test_an_expected_pack_that_is_there_needs_no_source(source: Path, store: LocalStore) -> None:
    made = ensure_pack(str(source), store)
    assert ensure_pack("/no/such/folder", store, expect=made.model_id) == made


def test_other_content_than_expected_is_a_conflict(source: Path, store: LocalStore) -> None:
    with pytest.raises(Conflict, match=r"is expected; correct the expected id") as caught:
        ensure_pack(str(source), store, expect="blake3:" + "0" * 64)
    assert caught.value.reason == "MODEL_ID_MISMATCH"


def test_a_pinned_commit_is_known_without_the_hub(
    source: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub(source) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        made = ensure_pack("hf://org/name", store, revision=COMMIT)
        asked = len(served.requests)
        assert ensure_pack("hf://org/name", store, revision=COMMIT) == made
        assert len(served.requests) == asked
    # The hub is gone now.
    assert ensure_pack("hf://org/name", store, revision=COMMIT) == made
    with pytest.raises(PremoeError):
        ensure_pack("hf://org/name", store, revision="f" * 40)


def test_a_record_whose_pack_is_incomplete_does_not_count(
    source: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub(source) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        made = ensure_pack("hf://org/name", store, revision=COMMIT)
        store.delete(f"models/{made.model_id}/checks.safetensors")
        assert ensure_pack("hf://org/name", store, revision=COMMIT) == made
    assert store.exists(f"models/{made.model_id}/checks.safetensors")


@pytest.mark.parametrize(("source", "revision"), [("/folder", COMMIT), ("hf://org/name@main", COMMIT)])
def test_a_revision_belongs_to_a_hub_and_is_given_once(store: LocalStore, source: str, revision: str) -> None:
    with pytest.raises(InvalidInput, match="revision"):
        ensure_pack(source, store, revision=revision)


def test_a_pack_that_somebody_else_publishes_meanwhile_counts(
    source: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two Jobs pack one source into one store: who comes second loses its staged files, and still ends well."""

    def beaten(opened: object, target: Store, progress: object) -> PackResult:
        write_pack(open_source(str(source)), target)
        raise NotFound("staged file is gone", reason="OBJECT_NOT_FOUND")

    monkeypatch.setattr(ensure, "write_pack", beaten)
    manifest = ensure_pack(str(source), store)
    assert json.loads(store.get(f"models/{manifest.model_id}/manifest.json"))["model_id"] == manifest.model_id
