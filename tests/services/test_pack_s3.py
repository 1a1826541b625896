"""Packing to and from a real S3 server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import killed_pack
from support.checkpoints import checkpoint, config, tensors, write
from support.servers import S3Server, s3_server

from premoe_runtime.formats.errors import Exhausted, InvalidInput, Unavailable
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.verify import verify_pack
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.storage import LocalStore, Store, open_store

pytestmark = pytest.mark.services


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with s3_server(tmp_path) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "model", shards=2)


def test_a_pack_in_s3_is_the_local_pack(s3: S3Server, source: Path, tmp_path: Path) -> None:
    local = write_pack(open_source(str(source)), LocalStore(tmp_path / "local"))
    url = f"{s3.url}/team/models-of-mine"
    result = write_pack(open_source(str(source)), open_store(url))
    assert result.manifest.model_id == local.manifest.model_id
    store = open_store(url)
    assert {info.path.split("/")[0] for info in store.list()} == {"models", "sources"}
    reader = open_pack(url)
    assert verify_pack(reader).faults == ()
    again = write_pack(open_source(str(source)), open_store(url))
    assert again.already_packed
    assert again.bytes_read == 0


def test_a_checkpoint_in_s3(s3: S3Server, source: Path, tmp_path: Path) -> None:
    store = open_store(f"{s3.url}/checkpoints/tiny")
    for path in source.iterdir():
        store.put(path.name, path.read_bytes())
    local = write_pack(open_source(str(source)), LocalStore(tmp_path / "local"))
    result = write_pack(open_source(f"{s3.url}/checkpoints/tiny"), open_store(f"{s3.url}/packs"))
    assert result.manifest.model_id == local.manifest.model_id
    assert result.manifest.origin.url == f"{s3.url}/checkpoints/tiny"


def test_blobs_of_several_parts(s3: S3Server, tmp_path: Path) -> None:
    """Blobs above 8 MiB: multipart uploads, and reads of several ranges."""
    values = config(hidden_size=512, moe_intermediate_size=1500, num_experts=3, num_hidden_layers=1)
    folder = write(tmp_path / "big", values, tensors(values, dtype="float32"))
    write_pack(open_source(str(folder)), open_store(s3.url))
    reader = open_pack(s3.url)
    assert reader.manifest().layout.blob_bytes > 8 << 20
    assert verify_pack(reader).faults == ()
    rooms = {ExpertId(0, expert): bytearray(reader.manifest().layout.blob_bytes) for expert in range(3)}
    done: list[ExpertId] = []
    before = reader.bytes_read
    reader.fetch(list(rooms), lambda expert: memoryview(rooms[expert]), lambda expert, checked: done.append(expert))
    assert done == list(rooms)
    assert reader.bytes_read - before == reader.manifest().experts_bytes
    for expert, room in rooms.items():
        name = f"model.layers.0.mlp.experts.{expert.expert}.gate_proj.weight"
        assert room.startswith(tensors(values, dtype="float32")[name].tobytes())


def pack_in_child(deadly: int, source: Path, url: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, killed_pack.__file__, "store", str(deadly), str(source), url]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=dict(os.environ))


@pytest.mark.parametrize(
    ("deadly", "visible"),
    [
        (7, False),  # among the layers
        (15, False),  # the first copies to models/
        (21, False),
        (24, True),  # the manifest is there, staged files are being deleted
    ],
)
def test_killed_anywhere_then_resumed(s3: S3Server, source: Path, deadly: int, visible: bool) -> None:
    run = pack_in_child(deadly, source, s3.url)
    assert run.returncode == -signal.SIGKILL, run.stderr
    store = open_store(s3.url)
    manifests = [info.path for info in store.list("models") if info.path.endswith("manifest.json")]
    assert bool(manifests) == visible
    if visible:
        assert verify_pack(open_pack(s3.url)).faults == ()
    kept = sum("/records/experts/" in info.path for info in store.list("staging"))
    result = write_pack(open_source(str(source)), open_store(s3.url))
    assert result.already_packed == visible
    assert result.resumed_layers == (0 if visible else kept)
    assert verify_pack(open_pack(s3.url)).faults == ()
    assert {info.path.split("/")[0] for info in store.list()} == {"models", "sources"}


def test_wrong_credentials_and_buckets(s3: S3Server, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Exception, match="s3://no-such-bucket"):
        write_pack(open_source(str(source)), open_store("s3://no-such-bucket"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(InvalidInput, match="access refused; check credentials"):
        write_pack(open_source(str(source)), open_store(s3.url))
    with pytest.raises(InvalidInput, match="access refused; check credentials"):
        open_store(s3.url).list()


def test_a_server_that_stops_is_unavailable(s3: S3Server, source: Path) -> None:
    write_pack(open_source(str(source)), open_store(s3.url))
    reader = open_pack(s3.url)
    s3.process.terminate()
    s3.process.wait(10)
    room = bytearray(reader.manifest().layout.blob_bytes)
    with pytest.raises(Unavailable, match=r"^pack s3://test/models/[0-9a-f]{64}, layer 1 expert 2: ") as error:
        reader.fetch([ExpertId(1, 2)], lambda expert: memoryview(room), lambda expert, checked: None)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_server_is_exhausted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("this machine lets nobody mount a tmpfs")
    try:
        with s3_server(disk) as server:
            for name, value in server.env.items():
                monkeypatch.setenv(name, value)
            store = open_store(server.url)
            with pytest.raises(Exhausted, match="no space left while writing s3://test/streamed"):
                write_parts(store)
            with pytest.raises(Exhausted, match="no space left while writing s3://test/whole"):
                store.put("whole", bytes(30 << 20))
            assert store.list() == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def write_parts(store: Store) -> None:
    with store.writer("streamed") as out:
        for _ in range(10):
            out.write(bytes(5 << 20))
