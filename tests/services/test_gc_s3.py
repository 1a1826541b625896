"""`premoe gc` over a real S3 server, stopped and killed in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import killed_gc, killed_pack
from support.blob_pack import BlobPack, write_blob_pack
from support.checkpoints import checkpoint
from support.servers import s3_server
from support.stored_patterns import StoredSet, store_set

from premoe_runtime.formats.live import go_live
from premoe_runtime.offline.patterns import library
from premoe_runtime.packs.place import packs_in
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.staging import Staging, is_complete
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.storage import Store, open_store

pytestmark = pytest.mark.services


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    with s3_server(tmp_path) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        yield open_store(f"{server.url}/team")


@pytest.fixture
def used(store: Store) -> BlobPack:
    return write_blob_pack(store, seed=1)


@pytest.fixture
def served(store: Store, used: BlobPack) -> StoredSet:
    """The live set of the pack in use."""
    made = store_set(store, weights_id=used.manifest.weights_id)
    go_live(store.get, store.put, used.manifest.weights_id, made.set_id, 1.0)
    return made


@pytest.fixture
def unused(store: Store) -> BlobPack:
    pack = write_blob_pack(store, seed=2)
    Staging(store, "k2").mark(pack.manifest)
    return pack


def collect(
    store: Store, *flags: str, number: int = signal.SIGKILL, step: int = 10**6
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, killed_gc.__file__, str(int(number)), str(step), store.url, "--days", "0", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=dict(os.environ))


def told(run: subprocess.CompletedProcess[str]) -> Any:
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def check_served(store: Store, used: BlobPack, served: StoredSet) -> None:
    assert is_complete(store, used.model_id)
    library.check_whole(store, served.pattern_set)
    assert library.live_set_id(store, used.manifest.weights_id) == served.set_id


def test_what_nobody_needs_goes_and_what_is_served_stays(
    store: Store, used: BlobPack, served: StoredSet, unused: BlobPack
) -> None:
    never = store_set(store, weights_id=unused.manifest.weights_id, seed=7)
    before = {info.path for info in store.list()}
    dry = told(collect(store, "--packs", "--sets", "--json"))
    assert {info.path for info in store.list()} == before
    assert {one["kind"] for one in dry["objects"]} == {"pack", "source mark", "set", "pattern"}
    sizes = {one["path"]: one["bytes"] for one in dry["objects"]}
    assert sizes[f"models/{unused.model_id}"] == sum(info.size for info in store.list(f"models/{unused.model_id}"))
    held = told(collect(store, "--packs", "--json"))
    assert {one["path"]: one["because"] for one in held["packs"]} == {
        f"models/{used.model_id}": "its live pointer",
        f"models/{unused.model_id}": f"set {never.set_id[:16]}",
    }
    gone = told(collect(store, "--packs", "--sets", "--delete", "--json"))
    assert (gone["deleted"], gone["objects"]) == (True, dry["objects"])
    check_served(store, used, served)
    assert packs_in(store) == [used.model_id]
    assert told(collect(store, "--packs", "--sets", "--json"))["objects"] == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
@pytest.mark.parametrize("step", [2, 4, 6])
def test_stopped_in_between_then_run_again(
    store: Store, used: BlobPack, served: StoredSet, unused: BlobPack, number: int, code: int, step: int
) -> None:
    run = collect(store, "--packs", "--delete", number=number, step=step)
    assert (run.returncode, run.stdout, run.stderr) == (code, "", "")
    assert packs_in(store) == [used.model_id], "half a pack looks whole to nobody"
    assert Staging(store, "k2").published() is None
    check_served(store, used, served)
    told(collect(store, "--delete", "--json"))
    assert {info.path.split("/")[1] for info in store.list("models")} == {used.model_id}
    assert store.list("sources") == []
    check_served(store, used, served)


@pytest.mark.parametrize("deadly", [7, 17])  # among the layers; among the copies to models/
def test_packing_that_was_given_up_goes(
    store: Store, used: BlobPack, served: StoredSet, tmp_path: Path, deadly: int
) -> None:
    source = checkpoint(tmp_path / "model", shards=2)
    command = [sys.executable, killed_pack.__file__, "store", str(deadly), str(source), store.url]
    assert subprocess.run(command, timeout=60, check=False).returncode == -signal.SIGKILL
    dry = subprocess.run(["premoe", "gc", store.url, "--json"], capture_output=True, text=True, check=True).stdout
    assert json.loads(dry)["objects"] == [], "it is too young"
    found = told(collect(store, "--delete", "--json"))
    assert "staging area" in {one["kind"] for one in found["objects"]}
    assert {info.path.split("/")[0] for info in store.list()} == {"live", "models", "patterns", "sets"}
    check_served(store, used, served)
    assert write_pack(open_source(str(source)), store).resumed_layers == 0
    assert len(packs_in(store)) == 2
