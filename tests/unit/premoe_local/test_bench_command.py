"""`premoe bench serve` against a server that answers well, badly, or not at all."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from premoe_local.cli import command
from support.sse_server import STREAM, Handler, Write, always, answer, event, piece, sse_server, whole

GOOD = partial(answer, tokens=3)


def bench(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(command, ["bench", "serve", "--base-url", url, *arguments], catch_exceptions=False)


def figures(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def test_a_closed_loop(tmp_path: Path) -> None:
    out, plot = tmp_path / "run.json", tmp_path / "run.png"
    options = "--num-prompts 20 --num-warmups 3 --max-concurrency 4 --goodput e2e:100000"
    with sse_server(GOOD) as server:
        result = bench(server.url, *options.split(), "--json", str(out), "--plot", str(plot))
    assert result.exit_code == 0, result.output
    for text in ("fake at http", "20 of 20", "TTFT", "ITL", "TPOT", "E2E", "(100.0%)", "roman"):
        assert text in result.stdout, text
    found = json.loads(out.read_text())
    assert found["requests"] == {"planned": 20, "ok": 20, "failed": 0, "unfinished": 0}
    assert found["latency_ms"]["itl"]["count"] == 20 * 2
    assert len(found["samples"]) == 20
    assert {sample["completion_tokens"] for sample in found["samples"]} == {3}
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert len(server.bodies) == 23


def test_an_open_loop_of_given_tasks(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "three"}]
    (tmp_path / "b.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    files = ["--task", f"a={tmp_path}/a.jsonl", "--task", f"b={tmp_path}/b.jsonl"]
    with sse_server(GOOD) as server:
        found = figures(
            bench(f"{server.url}/v1/", *files, *["--num-prompts", "30", "--request-rate", "500", "--json", "-"])
        )
    assert found["requests"]["ok"] == 30
    assert set(found["tasks"]) == {"a", "b"}
    due = [sample["due"] for sample in found["samples"]]
    assert due == sorted(due)
    assert all(sample["sent"] >= sample["due"] for sample in found["samples"])
    sent = {json.dumps(body["messages"]) for body in server.bodies}
    assert sent == {json.dumps(each) for each in ([{"role": "user", "content": "one"}],
                                                  [{"role": "user", "content": "two"}], turns)}  # fmt: skip


def test_requests_hold_what_was_asked_and_nothing_else() -> None:
    with sse_server(GOOD) as server:
        bench(server.url, "--num-prompts", "1", "--num-warmups", "0")
        options = "--num-prompts 1 --num-warmups 0 --pattern sql --ignore-eos --max-tokens 5 --temperature 0.5"
        bench(server.url, *options.split(), "--api-key", "secret")
    plain, asked = [{name: value for name, value in body.items() if name != "messages"} for body in server.bodies]
    common = {"model": "fake", "stream": True, "stream_options": {"include_usage": True}}
    assert plain == {**common, "max_tokens": 64, "temperature": 0.0}
    assert asked == {**common, "max_tokens": 5, "temperature": 0.5, "pattern": "sql", "ignore_eos": True}
    assert "authorization" not in server.headers[0].lower()
    assert "authorization: bearer secret" in server.headers[-1].lower()


def test_a_seed_repeats_what_is_sent() -> None:
    sent = []
    for seed in ("1", "1", "2"):
        with sse_server(GOOD) as server:
            bench(server.url, "--num-prompts", "10", "--seed", seed)
        sent.append([body["messages"] for body in server.bodies])
    assert sent[0] == sent[1] != sent[2]


FAULTS: dict[str, tuple[Handler, str, str]] = {
    "busy": (always(whole(b'{"error": {"message": "slow down"}}', "429 Too Many")), "429", "slow down"),
    "broken": (always(whole(b"<html>\n oops</html>", "500 No", "text/html")), "500", "<html> oops</html>"),
    "elsewhere": (always(whole(b"", "302 Found")), "302", "Found"),
    "no stream": (always(whole(b'{"choices": []}')), "no_stream", "application/json"),
    "bad bytes": (always(STREAM + b"data: \xff\n\n"), "bad_stream", "no JSON"),
    "an error in the stream": (always(STREAM + event({"error": {"message": "m", "code": "cut_off"}})), "cut_off", "m"),
    "cut between events": (always(STREAM + piece("a")), "cut", "ended"),
    "cut in an event": (always(STREAM + piece("a")[:20]), "cut", "ended"),
    "cut in a chunk": (
        always(STREAM.replace(b"connection: close", b"transfer-encoding: chunked") + b"ff\r\ndata"), "cut", "closed"),
    "hung up": (always(b""), "cut", "closed"),
    "no HTTP": (always(b"SSH-2.0-OpenSSH\r\n\r\n"), "no_http", "no HTTP"),
}  # fmt: skip


@pytest.mark.parametrize(("handler", "code", "detail"), FAULTS.values(), ids=FAULTS.keys())
def test_failures_are_counted_by_what_they_are(handler: Handler, code: str, detail: str) -> None:
    """Every second request fails; the others have their figures."""
    turn = 0

    async def alternating(body: Mapping[str, Any], write: Write) -> None:
        nonlocal turn
        turn += 1
        await (handler if turn % 2 else GOOD)(body, write)

    with sse_server(alternating) as server:
        found = figures(bench(server.url, *["--num-prompts", "6", "--num-warmups", "0", "--json", "-"]))
    assert found["requests"] == {"planned": 6, "ok": 3, "failed": 3, "unfinished": 0}
    assert (list(found["errors"]), found["errors"][code]["count"]) == ([code], 3)
    assert detail in found["errors"][code]["first"]
    assert found["latency_ms"]["e2e"]["count"] == 3


def test_a_request_that_takes_too_long_is_a_failure() -> None:
    slow = partial(answer, tokens=1000, pause_s=0.05)
    with sse_server(slow) as server:
        result = bench(server.url, *["--num-prompts", "2", "--num-warmups", "0", "--timeout", "0.3"])
    assert result.exit_code == 6
    assert "timeout" in result.stdout
    told = "every request failed, the first with timeout: no whole answer in time"
    assert result.stderr == f"error: {server.url}: {told}\n"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize(
    ("models", "code", "text"),
    [
        (whole(b"<html>", kind="text/html"), 2, "/v1/models lists no models, so this is no OpenAI endpoint"),
        (whole(b'{"data": 3}'), 2, "lists no models"),
        (whole(b"\xff\xfe"), 2, "lists no models"),
        (whole(b"nope", "404 Not Found"), 2, "answers 404"),
        (whole(b"{}", "401 Unauthorized"), 2, "set OPENAI_API_KEY"),
        (b"220 ready for mail\r\n", 6, "no HTTP"),
        (whole(b'{"data": []}'), 2, "serves no model"),
        (whole(b'{"data": [{"id": "a"}, {"id": "b"}]}'), 2, "serves a, b; choose with --model"),
    ],
)
def test_what_is_no_endpoint_is_told_in_one_line(models: bytes, code: int, text: str) -> None:
    with sse_server(GOOD, models) as server:
        result = bench(server.url)
    assert (result.exit_code, result.stdout) == (code, "")
    assert (result.stderr[:7], result.stderr.count("\n")) == ("error: ", 1)
    assert text in result.stderr
    assert not server.bodies


@pytest.mark.parametrize(
    ("url", "code", "text"),
    [
        ("http://127.0.0.1:FREE", 6, "Cannot connect"),
        ("http://nowhere.invalid", 6, "Cannot connect"),
        ("nonsense", 2, "no URL"),
        ("ftp://127.0.0.1", 2, "no URL"),
        ("http://", 2, "no URL"),
        ("http://127.0.0.1:99999", 2, "no URL"),
    ],
)
def test_an_address_where_nothing_answers_is_one_line(url: str, code: int, text: str) -> None:
    result = bench(url.replace("FREE", str(free_port())))
    assert (result.exit_code, result.stdout) == (code, "")
    assert (result.stderr[:7], result.stderr.count("\n")) == ("error: ", 1)
    assert text in result.stderr


def test_a_model_that_is_not_served_and_a_warm_up_that_fails() -> None:
    with sse_server(always(whole(b'{"error": 1}', "503 Busy"))) as server:
        missing = bench(server.url, "--model", "other")
        failed = bench(server.url)
    assert (missing.exit_code, missing.stderr.count("\n")) == (3, 1)
    assert "does not serve 'other'; it serves: fake" in missing.stderr
    assert (failed.exit_code, failed.stderr.count("\n")) == (6, 1)
    assert "the warm-up failed with 503" in failed.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--request-rate", "1", "--max-concurrency", "2"], 2, "give either --request-rate"),
        (["--burstiness", "1"], 2, "--burstiness goes with --request-rate"),
        (["--request-rate", "nan"], 2, "no number"),
        (["--goodput", "speed:3"], 2, "write for example ttft:200"),
        (["--goodput", "ttft"], 2, "is not a valid"),
        (["--goodput", "ttft:-1"], 2, "is not in the range"),
        (["--task", "a"], 2, "names no file"),
        (["--task", "a=/nowhere.jsonl"], 3, "no such calibration file"),
        (["--json", "/nowhere/x.json"], 3, "no such folder"),
        (["--plot", "x.xlsx"], 2, "cannot draw a .xlsx file"),
    ],
)
def test_what_cannot_be_asked_is_one_line(arguments: list[str], code: int, text: str) -> None:
    result = bench("http://127.0.0.1:9", *arguments)
    assert (result.exit_code, result.stderr.count("\n")) == (code, 1)
    assert text in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_gives_the_figures_so_far(number: signal.Signals) -> None:
    begun = 0

    async def third_hangs(body: Mapping[str, Any], write: Write) -> None:
        nonlocal begun
        begun += 1
        if begun == 3:
            process.send_signal(number)
        await answer(body, write, tokens=3 if begun < 3 else 10_000, pause_s=0.01)

    script = "import sys; from premoe_local.cli import main; main(sys.argv[1:])"
    options = ["--num-prompts", "50", "--num-warmups", "0", "--json", "-"]
    with sse_server(third_hangs) as server:
        process = subprocess.Popen(
            [sys.executable, "-c", script, "bench", "serve", "--base-url", server.url, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    found = json.loads(out)
    assert found["requests"] == {"planned": 50, "ok": 2, "failed": 0, "unfinished": 1}
    assert found["seconds"] > max(sample["ended"] for sample in found["samples"])
    assert err == b"stopped: 2 of 50 requests had ended\n"
