"""Packing that is killed or runs out of room: nothing half-written shows, and the next run goes on."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from io import RawIOBase
from pathlib import Path

import pytest
from support import killed_pack
from support.checkpoints import checkpoint

from premoe_runtime.formats.errors import Exhausted
from premoe_runtime.packs.progress import Silent
from premoe_runtime.packs.reader import PackReader
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.verify import verify_pack
from premoe_runtime.packs.writer import PackResult, write_pack
from premoe_runtime.storage import LocalStore

pytestmark = pytest.mark.services

FILES = 11  # of a pack of the tiny checkpoint, manifest included
RECORDS = 4  # a skeleton shard and three layers
STEPS_PER_FILE = 3  # sync, rename, sync of the folder


def pack_in_child(deadly: int, source: Path, store: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, killed_pack.__file__, "disk", str(deadly), str(source), str(store)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def leftovers(store: Path) -> list[str]:
    """Files outside of models/ and sources/, and unfinished ones anywhere."""
    paths = [path.relative_to(store) for path in store.rglob("*") if path.is_file()]
    return [str(path) for path in paths if path.parts[0] not in ("models", "sources") or "#" in path.name]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("source") / "model", shards=2)


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> PackResult:
    return write_pack(open_source(str(source)), LocalStore(tmp_path_factory.mktemp("whole")))


def check_whole(store: Path, expected: PackResult) -> None:
    reader = PackReader(LocalStore(store), f"models/{expected.manifest.model_id}")
    assert verify_pack(reader).faults == ()
    assert [path.name for path in (store / "models").iterdir()] == [expected.manifest.model_id]
    assert leftovers(store) == []


def test_the_steps_are_counted_right(source: Path, tmp_path: Path) -> None:
    run = pack_in_child(10**6, source, tmp_path)
    # the mark in sources/ as well, and the folder's own rename and sync
    assert (run.returncode, run.stdout.strip()) == (0, str(STEPS_PER_FILE * (FILES + RECORDS + 1) + 2))


@pytest.mark.parametrize("deadly", [1, 5, 23, 27, 28, 38, 43, 46, 49, 50])
def test_killed_anywhere_then_resumed(source: Path, expected: PackResult, tmp_path: Path, deadly: int) -> None:
    run = pack_in_child(deadly, source, tmp_path)
    assert run.returncode == -signal.SIGKILL, run.stderr
    models = tmp_path / "models"
    if models.exists() and any(models.iterdir()):
        check_models_are_whole(tmp_path, expected)
    kept = len(list(tmp_path.glob("staging/*/records/experts/*.json")))
    result = write_pack(open_source(str(source)), LocalStore(tmp_path))
    assert result.manifest.model_id == expected.manifest.model_id
    assert result.already_packed or result.resumed_layers == kept
    check_whole(tmp_path, expected)
    assert write_pack(open_source(str(source)), LocalStore(tmp_path)).already_packed


def check_models_are_whole(store: Path, expected: PackResult) -> None:
    assert [path.name for path in (store / "models").iterdir()] == [expected.manifest.model_id]
    assert verify_pack(PackReader(LocalStore(store), f"models/{expected.manifest.model_id}")).faults == ()


def test_a_resumed_run_reads_only_what_is_missing(source: Path, expected: PackResult, tmp_path: Path) -> None:
    assert pack_in_child(38, source, tmp_path).returncode == -signal.SIGKILL
    result = write_pack(open_source(str(source)), LocalStore(tmp_path))
    assert result.resumed_layers == 2
    assert result.bytes_read < expected.bytes_read / 2


@pytest.mark.parametrize("damage", ["cut", "remove", "record"])
def test_a_staged_layer_that_does_not_fit_its_record_is_written_again(
    source: Path, expected: PackResult, tmp_path: Path, damage: str
) -> None:
    assert pack_in_child(38, source, tmp_path).returncode == -signal.SIGKILL
    (layer,) = tmp_path.glob("staging/*/pack/experts/layer-000.safetensors")
    (record,) = tmp_path.glob("staging/*/records/experts/layer-000.safetensors.json")
    if damage == "cut":
        layer.write_bytes(layer.read_bytes()[:-1])
    elif damage == "remove":
        layer.unlink()
    else:
        record.write_text("{}")
    assert write_pack(open_source(str(source)), LocalStore(tmp_path)).resumed_layers == 1
    check_whole(tmp_path, expected)


def test_a_source_that_changed_in_between_starts_anew(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", shards=2, seed=1)
    assert pack_in_child(38, folder, tmp_path / "store").returncode == -signal.SIGKILL
    checkpoint(folder, shards=2, seed=2)
    result = write_pack(open_source(str(folder)), LocalStore(tmp_path / "store"))
    assert result.resumed_layers == 0
    other = write_pack(open_source(str(folder)), LocalStore(tmp_path / "other"))
    assert result.manifest.model_id == other.manifest.model_id


class SmallDisk:
    """A tmpfs of 40 MiB where the process may mount one; elsewhere writes that fail as on a full disk."""

    def __init__(self, path: Path, mounted: bool) -> None:
        self.path = path
        self.mounted = mounted
        self._write = os.write

    def fill(self) -> None:
        if not self.mounted:
            os.write = _full_write
            return
        with open(self.path / "filler", "wb", buffering=0) as filler:
            for size in (1 << 20, 1 << 12):
                with pytest.raises(OSError, match="No space left"):
                    _write_forever(filler, bytes(size))

    def free(self) -> None:
        os.write = self._write
        (self.path / "filler").unlink(missing_ok=True)


def _write_forever(file: RawIOBase, data: bytes) -> None:
    while True:
        file.write(data)


def _full_write(descriptor: int, data: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(place)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    disk = SmallDisk(place, mounted)
    try:
        yield disk
    finally:
        disk.free()
        if mounted:
            subprocess.run(["umount", str(place)], check=True)


class FillAt(Silent):
    """Fills the disk when packing reaches ``file``."""

    def __init__(self, disk: SmallDisk, file: str) -> None:
        self.disk, self.file = disk, file

    def stage(self, what: str) -> None:
        if what == self.file:
            self.disk.fill()


@pytest.mark.parametrize(
    ("file", "kept"),
    [("skeleton/model-00001-of-00001.safetensors", 0), ("experts/layer-001.safetensors", 1)],
)
def test_a_full_disk_then_room_again(
    source: Path, expected: PackResult, small_disk: SmallDisk, file: str, kept: int
) -> None:
    store = LocalStore(small_disk.path / "store")
    with pytest.raises(
        Exhausted, match=rf"no space left while writing .*{file}; free some room and run again"
    ) as error:
        write_pack(open_source(str(source)), store, FillAt(small_disk, file))
    assert error.value.exit_code == 7
    assert not (small_disk.path / "store" / "models").exists()
    assert {path.name for path in small_disk.path.rglob("*#*")} == {"lock#0"}
    small_disk.free()
    assert write_pack(open_source(str(source)), store).resumed_layers == kept
    check_whole(small_disk.path / "store", expected)
