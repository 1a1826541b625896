"""`premoe store` beside an expert store as a real process: warmed, watched, interrupted, ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from premoe_local.cli import command as premoe
from support.blob_pack import BlobPack, write_blob_pack
from support.certificates import Authority, tls_folder
from support.processes import serving
from support.stored_patterns import store_set

from premoe_runtime.formats.live import go_live
from premoe_runtime.storage import open_store

MODULE = "premoe_expert_store.cli"
BLOB = 256 << 10


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path / 'store'}"


@pytest.fixture
def pack(url: str) -> BlobPack:
    return write_blob_pack(open_store(url), experts=8, blob_bytes=BLOB)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(premoe, ["store", *map(str, arguments)])


def document(*arguments: object) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def present(address: str) -> int:
    return int(document("watch", address, "--once")["present"])


def test_a_cache_is_warmed_before_anybody_asks(url: str, pack: BlobPack) -> None:
    store = open_store(url)
    stored = store_set(store, weights_id=pack.manifest.weights_id)
    go_live(store.get, store.put, pack.manifest.weights_id, stored.set_id, 0.0)
    with serving(MODULE, ["--store-url", url]) as child:
        assert present(child.address) == 0
        task = document("prefetch", child.address, url, "--task", "sorting", "--budget", "1/2", "--wait")
        assert task == {"model_id": pack.model_id, "experts": 4, "present": 4, "under_way": 0, "refused": 0}
        assert present(child.address) == 4
        begun = document("prefetch", child.address, "--all")
        assert (begun["experts"], begun["present"] + begun["under_way"]) == (16, 16)
        assert document("prefetch", child.address, "--all", "--wait")["present"] == 16
        assert run("watch", child.address, "--once").stdout == "16 of 16 experts in the cache (4.0 MiB)\n"


def test_a_cache_without_room_refuses(url: str, pack: BlobPack, tmp_path: Path) -> None:
    arguments = ["--store-url", url, "--cache-dir", str(tmp_path / "cache"), "--cache-bytes", str(4 * BLOB)]
    with serving(MODULE, arguments) as child:
        result = run("prefetch", child.address, "--all", "--wait")
        assert (result.exit_code, "no room that would not cost others theirs" in result.stderr) == (7, True)
        assert 0 < present(child.address) <= 4


def test_people_come_with_an_admin_certificate(url: str, pack: BlobPack, tmp_path: Path) -> None:
    authority = Authority()
    server = tls_folder(tmp_path / "server", authority, "localhost", uris=["premoe://r/expert-store"])

    def called(role: str, *command: object) -> Result:
        folder = tls_folder(tmp_path / role, authority, role, uris=[f"premoe://r/{role}"])
        return run(*command, "--tls-server-name", "localhost", *folder.arguments)

    with serving(MODULE, ["--store-url", url, "--tls-release", "r", *server.arguments]) as child:
        for command in (("watch", child.address, "--once"), ("prefetch", child.address, "--all", "--wait")):
            assert called("admin", *command).exit_code == 0
            refused = called("gateway", *command)
            assert (refused.exit_code, "may not call" in refused.stderr, refused.stderr.count("\n")) == (8, True, 1)


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_watch_ends_clean_whoever_ends_it(url: str, pack: BlobPack, flags: list[str]) -> None:
    # A runner started in the background ignores SIGINT, and the child would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with serving(MODULE, ["--store-url", url]) as child:
        watches = [_watch(child.address, *flags) for _ in range(2)]
        try:
            watches[0].send_signal(signal.SIGINT)
            assert (watches[0].communicate(timeout=60)[1], watches[0].returncode) == (b"", 130)
            child.stop()
            said = watches[1].communicate(timeout=60)[1].decode()
        finally:
            for one in watches:
                one.kill()
                one.communicate()
    assert (watches[1].returncode, said.count("\n"), said.startswith("error: expert store ")) == (6, 1, True), said


def _watch(address: str, *flags: str) -> subprocess.Popen[bytes]:
    """One that has told the first state."""
    script = "from premoe_local.entry import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", script, "store", "watch", address, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    return process
