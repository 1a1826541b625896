"""`premoe up` as people run it: one command, one stream of logs, nothing left behind."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from click.testing import CliRunner
from premoe_local.cli import command
from support.damaged import broken_router
from support.mesh import BUDGET
from support.metrics import scrape
from support.processes import environ

pytestmark = pytest.mark.timeout(300)  # every mesh is four processes, and a worker imports torch

PATIENCE_S = 60.0


@contextmanager
def up(
    store_url: str, logs: Path, *options: str
) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, str], list[psutil.Process]]]:
    """A running `premoe up`, what it announced, and its children."""
    start = "import sys; from premoe_local.cli import main; main(sys.argv[1:])"
    arguments = ["up", "--model", store_url, "--budget", BUDGET, "--port", "0", "--threads", "1", "--json", *options]
    with logs.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", start, *arguments], stdout=subprocess.PIPE, stderr=stderr, env=environ()
        )
    assert process.stdout is not None
    children: list[psutil.Process] = []
    try:
        text = b""
        while not text.endswith(b"\n}\n"):
            line = process.stdout.readline()
            assert line, logs.read_text()
            text += line
        children = psutil.Process(process.pid).children(recursive=True)
        yield process, json.loads(text), children
    finally:
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        process.kill()
        process.wait()
        process.stdout.close()


def gone(children: list[psutil.Process]) -> None:
    """Assert that all of them end by themselves."""
    _, alive = psutil.wait_procs(children, timeout=PATIENCE_S)
    assert not alive


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything_cleanly(store_url: str, tmp_path: Path, number: signal.Signals) -> None:
    logs = tmp_path / "logs"
    with up(store_url, logs, "--metrics") as (process, announced, children):
        assert httpx.get(f"{announced['url']}/health").json()["status"] == "ok"
        assert len(children) == 4
        metrics: Any = announced["metrics"]
        assert metrics.keys() == {"gateway", "worker", "store", "retrieval"}
        assert scrape(metrics["gateway"]).value("premoe:gateway_worker_up") == 1
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == 0
        gone(children)
    lines = logs.read_text().splitlines()
    assert lines[-1] == "stopping" or "stopping" in lines
    assert any(line.startswith("worker    | ") for line in lines)
    assert not [line for line in lines if "Traceback" in line or "error" in line.lower()]


def test_a_child_that_dies_stops_the_mesh_with_one_line(store_url: str, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    with up(store_url, logs) as (process, _, children):
        victim = next(child for child in children if "premoe_expert_store.cli" in child.cmdline())
        victim.kill()
        assert process.wait(PATIENCE_S) == 6
        gone(children)
    errors = [line for line in logs.read_text().splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "store stopped by signal SIGKILL" in errors[0]


def test_one_worker_of_two_dies_and_is_started_again_while_the_other_answers(store_url: str, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    with (
        up(store_url, logs, "--workers", "2") as (process, announced, children),
        httpx.Client(timeout=60) as http,
    ):

        def serving() -> list[str]:
            workers: list[str] = http.get(f"{announced['url']}/health").json()["workers"]
            return workers

        before = serving()
        victim = next(child for child in children if "premoe_worker.cli" in child.cmdline())
        victim.kill()
        ask = {"model": announced["model"], "prompt": "0123", "max_tokens": 2, "pattern": "digits"}
        deadline = time.monotonic() + PATIENCE_S
        answered = 0
        while "starting it again" not in logs.read_text() or serving() != before:
            answer = http.post(f"{announced['url']}/v1/completions", json=ask)
            assert answer.status_code == 200, answer.text
            answered += 1
            assert process.poll() is None
            assert time.monotonic() < deadline, logs.read_text()
        assert len(before) == 2
        assert answered
        children += psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
        gone(children)


def test_children_die_with_a_killed_parent(store_url: str, tmp_path: Path) -> None:
    with up(store_url, tmp_path / "logs") as (process, _, children):
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        gone(children)


def test_a_signal_during_start_leaves_nothing(store_url: str, tmp_path: Path) -> None:
    start = "import sys; from premoe_local.cli import main; main(sys.argv[1:])"
    arguments = ["up", "--model", store_url, "--budget", BUDGET, "--port", "0"]
    with (tmp_path / "logs").open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", start, *arguments], stdout=subprocess.PIPE, stderr=stderr, env=environ()
        )
    children: list[psutil.Process] = []
    until = time.monotonic() + PATIENCE_S
    while len(children) < 2 and time.monotonic() < until:
        children = psutil.Process(process.pid).children(recursive=True)
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out) == (130, b"")
    assert (tmp_path / "logs").read_text().splitlines()[-1] == "stopping"
    gone(children)


BAD: dict[str, tuple[list[str], int, str]] = {
    "a > top-k": (["--budget", "5/8"], 2, "top-k is 4"),
    "b < a": (["--budget", "4/2"], 2, "at least 4"),
    "b > experts": (["--budget", "4/17"], 2, "the model has 16"),
    "slots < b + spare": (["--budget", "2/4", "--slots", "5"], 2, "at least 6"),
    "more spare": (["--budget", "2/4", "--slots", "6", "--spare", "4"], 2, "at least 8"),
    "full": (["--budget", "2/4", "--on-unknown", "full"], 4, "--slots 16"),
    "budget syntax": (["--budget", "quarter"], 2, "not of the form a/b"),
    "no pack": (["--budget", "2/4", "--model", "memory://nothing"], 3, "no pack here"),
    "port": (["--budget", "2/4", "--port", "{taken}"], 6, "is in use"),
    "context": (["--budget", "2/4", "--context", "100000000"], 2, "outside 1 to 1024"),
    "device": (["--budget", "2/4", "--device", "zzz"], 2, "device 'zzz' cannot be used here"),
    "Qdrant": (["--budget", "2/4", "--qdrant-url", "http://127.0.0.1:1"], 6, "Qdrant"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD.keys())
def test_bad_options_are_one_line_before_anything_starts(store_url: str, case: tuple[list[str], int, str]) -> None:
    arguments, code, message = case
    before = set(psutil.Process().children())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        given = ["up", "--model", store_url, "--port", "0", *(each.replace("{taken}", port) for each in arguments)]
        old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            result = CliRunner().invoke(command, given)
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
    assert result.exit_code == code, result.output
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert set(psutil.Process().children()) <= before


def test_generate_against_a_worker_and_on_its_own(store_url: str, tmp_path: Path) -> None:
    before = set(psutil.Process().children())
    with up(store_url, tmp_path / "logs") as (_, announced, _):
        address = announced["workers"][0]
        plain = CliRunner().invoke(command, ["generate", "0123456789", "--address", address, "--max-tokens", "5"])
        assert plain.exit_code == 0, plain.output
        assert "greedy · " in plain.stderr
        assert "retained mass" in plain.stderr
        asked = ["generate", "0123456789", "--address", address, "--max-tokens", "5", "--json"]
        document = json.loads(CliRunner().invoke(command, asked).stdout)
        assert plain.stdout == document["text"] + "\n"
        assert document["finish_reason"] in ("stop", "length")
        assert document["decision"] in ("specialist", "generalist")
        named = json.loads(CliRunner().invoke(command, [*asked, "--pattern", "vowels"]).stdout)
        assert (named["decision"], named["task"]) == ("specialist", "vowels")
        wrong = CliRunner().invoke(command, [*asked, "--pattern", "f" * 64])
        assert (wrong.exit_code, wrong.stderr.count("\n")) == (3, 1)
    alone = ["generate", "ABC", "--model", store_url, "--budget", BUDGET, "--pattern", "vowels", "--json"]
    result = CliRunner().invoke(command, [*alone, "--max-tokens", "2"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["decision"] == "specialist"
    assert set(psutil.Process().children()) <= before


def test_a_live_set_that_cannot_be_read_is_no_reason_to_serve(store_url: str, tmp_path: Path) -> None:
    copy = tmp_path / "store"
    shutil.copytree(Path(store_url.removeprefix("file://")), copy)
    arguments = ["up", "--model", str(copy), "--budget", BUDGET, "--port", "0"]
    victim = next((copy / "patterns").iterdir())
    victim.write_bytes(b"damaged")
    damaged = CliRunner().invoke(command, arguments)
    assert (damaged.exit_code, damaged.stdout, damaged.stderr.count("\n")) == (5, "", 1)
    victim.unlink()
    missing = CliRunner().invoke(command, arguments)
    assert (missing.exit_code, missing.stdout, missing.stderr.count("\n")) == (3, "", 1)
    assert "is not whole" in missing.stderr
    pointer = next((copy / "live").iterdir())
    pointer.write_bytes(b"{}")
    assert CliRunner().invoke(command, arguments).exit_code == 5


def test_without_a_live_set_the_full_model_is_served_or_nothing(store_url: str, tmp_path: Path) -> None:
    copy = tmp_path / "store"
    shutil.copytree(Path(store_url.removeprefix("file://")), copy)
    shutil.rmtree(copy / "live")
    for policy in ("generalist", "reject"):
        arguments = ["up", "--model", str(copy), "--budget", BUDGET, "--port", "0", "--on-unknown", policy]
        refused = CliRunner().invoke(command, arguments)
        assert (refused.exit_code, refused.stdout, refused.stderr.count("\n")) == (3, "", 1)
        assert "premoe patterns build … --set-live" in refused.stderr
    logs = tmp_path / "logs"
    # The default policy, where the slots hold every expert in any case.
    with up(copy.as_uri(), logs, "--slots", "16") as (_, announced, _):
        body = {"model": announced["model"], "messages": [{"role": "user", "content": "ABC"}], "max_tokens": 2}
        answer = httpx.post(f"{announced['url']}/v1/chat/completions", json=body, timeout=PATIENCE_S)
        assert answer.status_code == 200, answer.text
        assert answer.json()["premoe"]["decision"] == "full"
    assert "every prompt runs on the full model" in logs.read_text()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["hi", "--max-tokens", "99999999999"], "--max-tokens"),
        (["hi", "--seed", str(10**22)], "--seed"),
        (["hi", "--active-experts", "5000000000"], "--active-experts"),
        (["hi", "--temperature", "nan"], "--temperature"),
        (["hi", "--top-p", "nan"], "--top-p"),
        (["hi", "--timeout", "inf"], "--timeout"),
        (["\udcff"], "is not UTF-8"),
        (["hi", "--system", "\udcff"], "is not UTF-8"),
        (["hi", "--stop", "\udcff"], "is not UTF-8"),
        (["hi", "--priority", "-1"], "--priority"),
        (["hi", "--template-argument", "enable_thinking"], "is not NAME=JSON"),
        (["hi", "--template-argument", "=1"], "is not NAME=JSON"),
        (["hi", "--template-argument", "effort=high"], "'high' is no JSON"),
        (["hi", "--template-argument", "effort=[1]"], "effort must be true, false, a number"),
        (["hi", "--template-argument", "effort=NaN"], "effort must be true, false, a number"),
        (["hi", "--template-argument", "a=\udcff"], "is not UTF-8"),
        (["hi", "--template-argument", "a=1", "--raw"], "--raw has no chat template"),
    ],
)
def test_what_cannot_be_sent_is_one_line(arguments: list[str], what: str) -> None:
    result = CliRunner().invoke(command, ["generate", *arguments, "--address", "127.0.0.1:1"])
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert what in result.stderr


def test_a_model_whose_router_is_not_finite_is_damaged_data(tmp_path: Path) -> None:
    asked = ["hi", "--model", str(broken_router(tmp_path, math.nan)), "--budget", "4/16", "--pattern", "full"]
    result = CliRunner().invoke(command, ["generate", *asked])
    assert (result.exit_code, result.stdout) == (5, ""), result.stderr
    assert [line for line in result.stderr.splitlines() if "error" in line] == [
        "error: worker stopped with exit code 5: the model's logits are not finite; the weights may be damaged"
    ]


def test_nobody_at_the_address() -> None:
    result = CliRunner().invoke(command, ["generate", "hi", "--address", "127.0.0.1:1"])
    assert (result.exit_code, result.stdout) == (6, "")
    assert result.stderr.startswith("error: worker 127.0.0.1:1 does not answer")
