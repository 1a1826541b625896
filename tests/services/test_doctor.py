"""`premoe doctor` against a real Redis, S3 server and expert store, healthy and with faults."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import CliRunner
from premoe_local.cli import command as premoe
from support.blob_pack import write_blob_pack
from support.certificates import Authority, tls_folder
from support.processes import serving
from support.servers import redis_server, s3_server

from premoe_runtime.storage import open_store

pytestmark = pytest.mark.services

CACHE = ("--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lfu")


def examined(*arguments: object) -> dict[str, Any]:
    """Findings by their check."""
    result = CliRunner().invoke(premoe, ["doctor", *(str(argument) for argument in arguments), "--json"])
    assert result.exit_code in (0, 1), result.output
    told = json.loads(result.stdout)
    assert (told["worst"] == "error") == (result.exit_code == 1)
    return {finding["check"]: finding for finding in told["findings"]}


def states(found: dict[str, Any], start: str) -> dict[str, str]:
    return {check.removeprefix(f"{start} "): one["state"] for check, one in found.items() if start in check}


def test_a_redis_that_is_set_up_as_a_cache(tmp_path: Path) -> None:
    with redis_server(tmp_path, *CACHE) as server:
        found = examined("--redis", server.url)
        assert states(found, "Redis") == {
            "Redis": "ok",
            "maxmemory": "ok",
            "maxmemory-policy": "ok",
            "persistence": "ok",
            "output buffers": "ok",
            "MALLOC_CONF": "skipped",
            "latency": "ok",
            "clock of Redis": "ok",
        }
        assert "jemalloc" in found["Redis MALLOC_CONF"]["found"]
        with redis.Redis.from_url(server.url) as client:
            assert client.dbsize() == 0, "nothing is written"


@pytest.mark.parametrize(
    ("options", "check", "state", "told"),
    [
        ((), "maxmemory", "warning", "no limit"),
        (("--maxmemory", "64mb"), "maxmemory-policy", "error", "noeviction"),
        (("--maxmemory", "64mb", "--maxmemory-policy", "volatile-lru"), "maxmemory-policy", "error", "volatile-lru"),
        ((*CACHE, "--appendonly", "yes"), "persistence", "warning", "appendonly yes"),
        ((*CACHE, "--save", "900 1"), "persistence", "warning", "save '900 1'"),
        ((*CACHE, "--client-output-buffer-limit", "normal 1mb 1mb 60"), "output buffers", "error", "1.0 MiB"),
    ],
)
def test_each_fault_of_a_real_redis(
    tmp_path: Path, options: tuple[str, ...], check: str, state: str, told: str
) -> None:
    with redis_server(tmp_path, *options) as server:
        found = examined("--redis", server.url)[f"Redis {check}"]
        assert (found["state"], told in found["found"]) == (state, True), found


def test_a_replica_and_a_user_who_may_ask_nothing(tmp_path: Path) -> None:
    (tmp_path / "replica").mkdir()
    with redis_server(tmp_path, *CACHE) as server:
        with redis_server(tmp_path / "replica", "--replicaof", f"127.0.0.1 {server.port}") as replica:
            assert examined("--redis", replica.url)["Redis"]["state"] == "error"
        with redis.Redis.from_url(server.url) as client:
            client.execute_command("ACL", "SETUSER", "blobs", "on", ">s3cret", "~*", "+get", "+set", "+ping")
        found = examined("--redis", f"redis://blobs:s3cret@127.0.0.1:{server.port}/0")
        assert states(found, "Redis maxmemory") == {"Redis maxmemory": "skipped", "Redis maxmemory-policy": "skipped"}
        assert (found["Redis"]["state"], found["Redis latency"]["state"]) == ("ok", "ok")
        refused = examined("--redis", f"redis://blobs:wr0ng@127.0.0.1:{server.port}/0")["Redis"]
        assert (refused["state"], "wr0ng" in str(refused)) == ("error", False)


def test_a_redis_that_hangs_is_given_up(tmp_path: Path) -> None:
    with redis_server(tmp_path, *CACHE) as server:
        with redis.Redis.from_url(server.url) as client:
            client.execute_command("CLIENT", "PAUSE", 60_000)
        assert examined("--redis", server.url, "--timeout", 0.8)["Redis"]["state"] == "error"


def test_an_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server(tmp_path) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        empty = examined("--store", server.url)
        assert empty["object store"]["state"] == "ok"
        assert empty["object store, first byte"]["state"] == "skipped"
        write_blob_pack(open_store(server.url), blob_bytes=4 << 20)
        before = {info.path for info in open_store(server.url).list()}
        found = examined("--store", server.url, "--timeout", 60)
        assert found["object store"]["found"] == f"{server.url}: 1 pack"
        assert "8.0 MiB in" in found["object store, one range"]["found"]
        assert found["object store, first byte"]["state"] in ("ok", "warning")
        assert found["clock of object store"]["state"] == "ok"
        assert {info.path for info in open_store(server.url).list()} == before
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        refused = examined("--store", server.url)["object store"]
        assert (refused["state"], "access refused" in refused["found"]) == ("error", True)


def test_an_object_store_that_is_gone_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server(tmp_path) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
    found = examined("--store", server.url, "--timeout", 0.5)["object store"]
    assert (found["state"], "--timeout" in found["found"] or "s3://test" in found["found"]) == ("error", True), found


def test_an_expert_store_with_and_without_tls(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    write_blob_pack(open_store(url))
    with serving("premoe_expert_store.cli", ["--store-url", url]) as child:
        assert examined("--expert-store", child.address, "--timeout", 60)["expert store"]["state"] != "error"
    authority = Authority()
    files = tls_folder(tmp_path / "tls", authority, "store")
    other = tls_folder(tmp_path / "other", Authority("another"), "worker")
    with serving("premoe_expert_store.cli", ["--store-url", url, *files.arguments]) as child:
        named = ["--expert-store", child.address, "--timeout", 60]
        assert examined(*named, *files.arguments)["expert store"]["state"] != "error"
        assert examined("--expert-store", child.address, "--timeout", 4)["expert store"]["state"] == "error"
        assert (
            examined("--expert-store", child.address, "--timeout", 4, *other.arguments)["expert store"]["state"]
            == "error"
        )


def test_another_service_at_the_address(tmp_path: Path) -> None:
    with serving("premoe_retrieval.cli", ["--store-url", str(tmp_path)]) as child:
        found = examined("--expert-store", child.address, "--timeout", 60)["expert store"]
        assert (found["state"], "another service" in found["found"]) == ("error", True)


def test_the_program_ends_soon_though_a_server_never_does(tmp_path: Path) -> None:
    """What still tries in the background does not hold up the end."""
    with redis_server(tmp_path, *CACHE) as server:
        with redis.Redis.from_url(server.url) as client:
            client.execute_command("CLIENT", "PAUSE", 60_000)
        command = ["premoe", "doctor", "--expert-store", f"127.0.0.1:{server.port}", "--timeout", "1", "--json"]
        run = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
        assert (run.returncode, run.stderr) == (1, "")
