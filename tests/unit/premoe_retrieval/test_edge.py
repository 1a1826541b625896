"""Qdrant's engine in process: folders kept, shared, killed, full, read-only, damaged, or of an older version."""

from __future__ import annotations

import os
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from premoe_retrieval.adapters import folder as folder_module
from premoe_retrieval.adapters.edge import EdgeIndex
from premoe_retrieval.adapters.folder import LOCK, PREFIX
from qdrant_client import QdrantClient, models
from support.killed_index import kill_while_writing
from support.stored_patterns import DIMENSION, FAR, StoredSet, store_set

from premoe_runtime.formats.errors import CorruptData, InvalidInput, PremoeError, Unavailable
from premoe_runtime.storage import open_store

KILLED_EXEMPLARS = 3 * 1500


@pytest.fixture
def stored() -> StoredSet:
    return store_set(open_store(f"memory://{uuid.uuid4()}"))


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


async def check(index: EdgeIndex, stored: StoredSet) -> None:
    """The set is whole and its exemplars are found."""
    exemplars = sum(member.exemplars for member in stored.pattern_set.specialists)
    assert await index.count(stored.set_id, DIMENSION) == exemplars
    signature = stored.near("spelling")
    for member in stored.pattern_set.specialists:
        found = await index.query(stored.set_id, signature, {member.pattern_id: 5})
        exact = np.sort(stored.pattern_set.exemplars_of(member) @ signature)[::-1][:5]
        np.testing.assert_allclose([one.similarity for one in found], exact, atol=1e-5)


async def test_a_folder_keeps_its_points_and_has_one_owner(tmp_path: Path, stored: StoredSet) -> None:
    first = EdgeIndex(tmp_path / "kept")
    # Also before there is anything in it.
    with pytest.raises(InvalidInput, match=r"kept is held by another process; .* Qdrant server$") as caught:
        EdgeIndex(tmp_path / "kept")
    assert caught.value.reason == "INDEX_LOCKED"
    await first.publish(stored.set_id, stored.pattern_set)
    await first.close()
    second = EdgeIndex(tmp_path / "kept")
    await check(second, stored)
    await second.close()


async def test_a_temporary_folder_goes_with_the_index(temporary: Path, stored: StoredSet) -> None:
    index = EdgeIndex()
    await index.publish(stored.set_id, stored.pattern_set)
    assert list(temporary.glob(f"{PREFIX}*/premoe-signatures-{DIMENSION}"))
    await index.close()
    assert not list(temporary.iterdir())


async def test_what_a_killed_process_left_is_removed_and_a_living_ones_is_not(temporary: Path) -> None:
    dead = temporary / f"{PREFIX}dead"
    dead.mkdir()
    (dead / LOCK).touch()
    (temporary / f"{PREFIX}starting").mkdir()
    living = EdgeIndex()
    assert not dead.exists()
    held = set(temporary.iterdir())
    second = EdgeIndex()
    assert held < set(temporary.iterdir())
    await second.close()
    await living.close()
    assert {path.name for path in temporary.iterdir()} == {f"{PREFIX}starting"}


@pytest.mark.slow
async def test_a_process_killed_while_it_writes_leaves_an_index_that_is_made_whole(tmp_path: Path) -> None:
    stored = store_set(open_store(f"memory://{uuid.uuid4()}"), exemplars=KILLED_EXEMPLARS // 3)
    partial = 0
    for turn in range(4):
        folder = tmp_path / f"killed-{turn}"
        kill_while_writing(folder, KILLED_EXEMPLARS // 3, batches=turn * 8 + 1)
        index = EdgeIndex(folder)
        found = await index.count(stored.set_id, DIMENSION)
        assert found <= KILLED_EXEMPLARS
        partial += 0 < found < KILLED_EXEMPLARS
        await index.publish(stored.set_id, stored.pattern_set)
        await check(index, stored)
        await index.close()
    assert partial, "every process was killed before or after it wrote"


async def test_a_shard_whose_making_was_killed_is_made_again(tmp_path: Path, stored: StoredSet) -> None:
    (tmp_path / f"premoe-signatures-{DIMENSION}.new" / "segments").mkdir(parents=True)
    index = EdgeIndex(tmp_path)
    assert await index.count(stored.set_id, DIMENSION) == 0
    await index.publish(stored.set_id, stored.pattern_set)
    await check(index, stored)
    await index.close()


async def test_a_damaged_shard_is_one_line_that_says_what_to_do(tmp_path: Path, stored: StoredSet) -> None:
    index = EdgeIndex(tmp_path)
    await index.publish(stored.set_id, stored.pattern_set)
    await index.close()
    for path in tmp_path.rglob("segment.json"):
        path.write_bytes(b"\x00")
    with pytest.raises(CorruptData, match=r"premoe-signatures-16 cannot be read: .* made again from object") as caught:
        EdgeIndex(tmp_path)
    assert "\n" not in str(caught.value)
    assert (tmp_path / f"premoe-signatures-{DIMENSION}").exists()
    index = EdgeIndex(tmp_path / "elsewhere")
    await index.close()


async def test_a_full_disk_is_said_before_it_kills(
    tmp_path: Path, stored: StoredSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = EdgeIndex(tmp_path)
    await index.publish(stored.set_id, stored.pattern_set)
    monkeypatch.setattr(folder_module, "ROOM_BYTES", 1 << 62)
    other = store_set(open_store(f"memory://{uuid.uuid4()}"), seed=1)
    for work in (index.publish(other.set_id, other.pattern_set), index.delete(stored.set_id)):
        with pytest.raises(Unavailable, match=r"MiB left, and writing needs .* free some room") as caught:
            await work
        assert caught.value.reason == "INDEX_FULL"
    await check(index, stored)
    await index.close()
    with pytest.raises(Unavailable, match="free some room"):
        EdgeIndex(tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own: 96 MiB."""
    if os.getuid():
        pytest.skip("mounting needs root")
    tmp_path = tmp_path / "disk"
    tmp_path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "none", str(tmp_path)], check=True)
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


async def test_a_small_disk_fills_up_and_the_process_lives(small_disk: Path) -> None:
    stored = store_set(open_store(f"memory://{uuid.uuid4()}"))
    index = EdgeIndex(small_disk)
    await index.publish(stored.set_id, stored.pattern_set)
    (small_disk / "ballast").write_bytes(bytes(64 << 20))
    with pytest.raises(Unavailable, match="free some room"):
        await index.publish(stored.set_id, stored.pattern_set)
    await check(index, stored)
    (small_disk / "ballast").unlink()
    await index.publish(stored.set_id, stored.pattern_set)
    await check(index, stored)
    await index.close()


def test_a_read_only_disk_is_one_line(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for path in (small_disk, small_disk / "below"):
        with pytest.raises(PremoeError, match="read-only file system; choose another place"):
            EdgeIndex(path)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(PremoeError, match=r"^index folder"):
            EdgeIndex(path)


async def test_an_older_versions_folder_is_indexed_again(
    tmp_path: Path, stored: StoredSet, caplog: pytest.LogCaptureFixture
) -> None:
    old = QdrantClient(path=str(tmp_path))
    vectors = models.VectorParams(size=DIMENSION, distance=models.Distance.COSINE)
    old.create_collection(f"premoe-signatures-{DIMENSION}", vectors_config=vectors)
    point = models.PointStruct(id=1, vector=FAR.tolist(), payload={"set_id": stored.set_id})
    old.upsert(f"premoe-signatures-{DIMENSION}", [point])
    old.close()
    index = EdgeIndex(tmp_path)
    assert await index.count(stored.set_id, DIMENSION) == 0
    await index.publish(stored.set_id, stored.pattern_set)
    await check(index, stored)
    await index.close()
    assert len(caplog.records) == 1
    assert "older version" in caplog.text
    assert "indexed again" in caplog.text
