"""`premoe doctor` on the command line, without servers."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from premoe_local.cli import command as premoe
from premoe_local.doctor.facts import machine
from support.blob_pack import write_blob_pack
from support.certificates import Authority, tls_folder
from support.machines import GOOD
from support.servers import free_port

from premoe_runtime.storage import open_store


@pytest.fixture(autouse=True)
def good_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "look", lambda: GOOD)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(premoe, ["doctor", *(str(argument) for argument in arguments)])


def document(*arguments: object, code: int = 0) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == code, result.output
    told = json.loads(result.stdout)
    return {"worst": told["worst"]} | {finding["check"]: finding for finding in told["findings"]}


def test_nothing_is_asked_of_a_network_that_no_flag_names(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    told = document()
    assert told["worst"] == "ok"
    assert [told[name]["state"] for name in ("object store", "Redis", "expert store", "disk", "TLS files")] == [
        "skipped"
    ] * 5
    text = run().stdout
    assert text.endswith("0 errors, 0 warnings, 5 skipped\n")
    assert "why:" not in text


def test_warnings_are_told_and_are_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "look", lambda: machine.Machine(congestion="bbr", memory=GOOD.memory))
    result = run()
    assert result.exit_code == 0
    assert "warning: congestion control: bbr\n  why: it paces" in result.stdout
    assert "(data-plane.md §1, finding 2)\n  do:  on the node: sysctl" in result.stdout


def test_a_folder_as_a_store_says_how_large_blobs_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "look", lambda: machine.Machine(libc="glibc", memory=GOOD.memory))
    write_blob_pack(open_store(str(tmp_path)))
    assert document()["malloc"]["state"] == "warning"
    told = document("--store", tmp_path)
    assert told["malloc"]["state"] == "ok"
    assert told["object store"]["found"].endswith("1 pack")
    assert told["object store, one range"]["state"] == "ok"


def test_a_damaged_pack_is_an_error(tmp_path: Path) -> None:
    pack = write_blob_pack(open_store(str(tmp_path)))
    open_store(str(tmp_path)).put(pack.path("manifest.json"), b"{")
    assert document("--store", tmp_path, code=1)["object store"]["state"] == "error"


def test_a_disk_and_tls_files(tmp_path: Path) -> None:
    files = tls_folder(tmp_path / "tls", Authority(), "worker")
    told = document("--folder", tmp_path, "--disk-seconds", 0.1, *files.arguments)
    assert told["disk"]["found"].startswith(str(tmp_path))
    assert (told["TLS files"]["state"], "ends in 1.0 days" in told["TLS files"]["found"]) == ("warning", True)
    (tmp_path / "tls" / "tls.key").unlink()
    result = run(*files.arguments)
    assert result.exit_code == 1
    assert "error: TLS files: TLS file" in result.stdout


def test_servers_that_are_not_there_are_errors() -> None:
    port = free_port()
    told = document("--redis", f"redis://user:s3cret@127.0.0.1:{port}/0", "--expert-store", f"127.0.0.1:{port}", code=1)
    assert told["worst"] == "error"
    assert told["Redis"]["state"] == told["expert store"]["state"] == "error"
    assert "s3cret" not in json.dumps(told)


def test_a_server_that_never_answers_is_waited_for_so_long(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        told = document("--redis", f"redis://{address}/0", "--expert-store", address, "--timeout", 0.4, code=1)
    assert told["Redis"]["state"] == told["expert store"]["state"] == "error"


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--redis", "http://host"], "redis://"),
        (["--redis", "redis://user:s3cret@host:port/0"], "redis://"),
        (["--store", "ftp://host"], "ftp"),
        (["--store", ""], "empty"),
        (["--folder", "nowhere"], "nowhere"),
        (["--tls-cert", "a.pem"], "go together"),
        (["--timeout", "nan"], "nan"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], what: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stderr.count("\n"), what in result.stderr) == (2, 1, True), result.stderr
    assert "s3cret" not in result.output
