"""Packing over a damaged pack writes what is damaged again, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.checkpoints import checkpoint

from premoe_runtime.formats.errors import Conflict
from premoe_runtime.packs.reader import PackReader
from premoe_runtime.packs.repair import pack_or_repair
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.verify import verify_pack
from premoe_runtime.packs.writer import PackResult, write_pack
from premoe_runtime.storage import LocalStore

SHARD = "skeleton/model-00001-of-00001.safetensors"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "model", shards=2)


@pytest.fixture
def pack(source: Path, tmp_path: Path) -> Path:
    pack_again(source)
    (pack,) = (tmp_path / "store/models").iterdir()
    return pack


def pack_again(source: Path) -> PackResult:
    return pack_or_repair(open_source(str(source)), LocalStore(source.parent / "store"))


def files(pack: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every file: what was replaced has others."""
    found = {path.relative_to(pack).as_posix(): path.stat() for path in pack.rglob("*") if path.is_file()}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found.items()}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


def test_a_whole_pack_is_checked_and_left_alone(source: Path, pack: Path) -> None:
    before = files(pack)
    (source / "model-00001-of-00002.safetensors").touch()  # of another state, so the source is read, too
    for _ in range(2):
        result = pack_again(source)
        assert result.repaired == ()
        assert files(pack) == before
    assert result.already_packed
    assert not (source.parent / "store/staging").exists()


@pytest.mark.parametrize("damage", [flip, truncate, lengthen, Path.unlink])
@pytest.mark.parametrize(
    "file",
    ["experts/layer-001.safetensors", SHARD, "skeleton/config.json", "skeleton/tokenizer.json", "checks.safetensors"],
)
def test_a_damaged_file_is_written_again(source: Path, pack: Path, file: str, damage: Callable[[Path], None]) -> None:
    before = files(pack)
    damage(pack / file)
    assert verify_pack(PackReader(LocalStore(pack))).faults
    result = pack_again(source)
    assert result.repaired == (file,)
    assert not result.already_packed
    assert verify_pack(PackReader(LocalStore(pack))).faults == ()
    after = files(pack)
    assert {name for name in before if after[name] != before[name]} == {file}
    assert not (source.parent / "store/staging").exists()
    assert pack_again(source).already_packed


def test_several_at_once(source: Path, pack: Path) -> None:
    damaged = ("checks.safetensors", "experts/layer-000.safetensors", "experts/layer-002.safetensors")
    for file in damaged:
        flip(pack / file)
    assert pack_again(source).repaired == damaged
    assert verify_pack(PackReader(LocalStore(pack))).faults == ()


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
@pytest.mark.parametrize("also", ["", "experts/layer-001.safetensors"])
def test_a_manifest_comes_back_and_only_what_differs_is_replaced(
    source: Path, pack: Path, damage: Callable[[Path], None], also: str
) -> None:
    before = files(pack)
    damage(pack / "manifest.json")
    if also:
        flip(pack / also)
    pack_again(source)
    assert verify_pack(PackReader(LocalStore(pack))).faults == ()
    after = files(pack)
    assert {name for name in before if after[name] != before[name]} == {"manifest.json", also} - {""}


def test_a_source_of_another_state_repairs_too(source: Path, pack: Path) -> None:
    """Its mark is another, so it is packed anew, and what differs from it in the pack is replaced."""
    before = files(pack)
    flip(pack / "experts/layer-001.safetensors")
    (source / "config.json").touch()
    write_pack(open_source(str(source)), LocalStore(source.parent / "store"))
    assert verify_pack(PackReader(LocalStore(pack))).faults == ()
    after = files(pack)
    assert {name for name in before if after[name] != before[name]} == {"experts/layer-001.safetensors"}


def test_a_source_that_changed_under_its_stamps_cannot_repair(source: Path, pack: Path) -> None:
    flip(pack / "skeleton/tokenizer.json")
    place = source / "tokenizer.json"
    stamp = place.stat()
    place.write_bytes(b"{}".ljust(stamp.st_size))
    os.utime(place, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    damaged = (pack / "skeleton/tokenizer.json").read_bytes()
    with pytest.raises(Conflict, match=r"no longer gives skeleton/tokenizer\.json of pack") as error:
        pack_again(source)
    assert error.value.reason == "SOURCE_CHANGED"
    assert (pack / "skeleton/tokenizer.json").read_bytes() == damaged
