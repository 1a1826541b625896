from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.metrics import scrape
from support.ports import stable_port
from support.processes import environ

pytestmark = pytest.mark.slow

PRELUDE = """
import asyncio, logging
from premoe_runtime.formats.errors import Conflict
from premoe_servicekit.process import run_process
from premoe_servicekit.server import RpcServer
from premoe_servicekit.settings import ServerSettings, SettingsConfigDict

class OvenSettings(ServerSettings):
    model_config = SettingsConfigDict(env_prefix="PREMOE_OVEN_")

async def serve(settings, process):
    server = RpcServer([], settings)
    await server.start()
{body}
    await process.serve([server], address=server.address, trays=3)

run_process("premoe-oven", OvenSettings, serve)
"""


def script(*body: str) -> list[str]:
    return [sys.executable, "-c", PRELUDE.format(body="\n".join("    " + line for line in body))]


@contextmanager
def oven(*body: str, arguments: tuple[str, ...] = ()) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*script(*body), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ(),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_says_where_it_serves_and_ends_with_zero(number: signal.Signals) -> None:
    with oven() as process:
        ready = json.loads(first_line(process))
        assert ready.pop("address").startswith("127.0.0.1:")
        assert ready == {"ready": True, "service": "oven", "trays": 3}
        process.send_signal(number)
        assert process.communicate(timeout=60) == ("", "")
        assert process.returncode == 0


def test_a_signal_before_it_serves_ends_it() -> None:
    with oven("print('starting', flush=True)", "await asyncio.Event().wait()") as process:
        assert first_line(process) == "starting\n"
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=60) == ("", "")
        assert process.returncode == 0


def test_an_error_at_the_start_is_one_line_and_its_exit_code() -> None:
    ended = subprocess.run(
        script("raise Conflict('the oven\\nis on')"), capture_output=True, text=True, env=environ(), timeout=60
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (4, "", "error: the oven is on\n")


def test_an_error_that_nobody_expected_has_last_words_too(tmp_path: Path) -> None:
    log = tmp_path / "log"
    extra = {"PREMOE_TERMINATION_LOG": str(log)}
    ended = subprocess.run(
        script("raise KeyError('oven')"), capture_output=True, text=True, env=environ(extra), timeout=60
    )
    assert (ended.returncode, ended.stderr.splitlines()[-1]) == (1, "KeyError: 'oven'")
    assert json.loads(log.read_text()) == {"reason": "INTERNAL", "message": "KeyError: 'oven'"}


@pytest.mark.parametrize("serving", [True, False])
def test_a_process_that_fails_says_why_and_ends(serving: bool) -> None:
    fail = "asyncio.get_running_loop().call_later(0.1, process.fail, Conflict('the oven burnt\\nout'))"
    with oven(fail, *([] if serving else ["await asyncio.Event().wait()"])) as process:
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (4, "error: the oven burnt out\n")


def test_a_failure_shows_in_health_while_the_process_drains() -> None:
    fail = "asyncio.get_running_loop().call_later(0.1, process.fail, Conflict('burnt'))"
    with oven(fail, arguments=("--drain-delay-s", "3600")) as process:
        with grpc.insecure_channel(json.loads(first_line(process))["address"]) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            statuses = stub.Watch(health_pb2.HealthCheckRequest(), timeout=60, wait_for_ready=True)
            assert any(answer.status == health_pb2.HealthCheckResponse.NOT_SERVING for answer in statuses)
        process.send_signal(signal.SIGTERM)  # after it has begun to stop, one signal is enough
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (4, "error: burnt\n")


def test_logs_are_json_lines_on_request() -> None:
    with oven("logging.getLogger('oven').warning('hot')", arguments=("--log-format", "json")) as process:
        first_line(process)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    entry = json.loads(errors)
    assert (entry["service"], entry["level"], entry["message"]) == ("oven", "warning", "hot")


def test_metrics_are_told_while_it_starts_and_while_it_drains() -> None:
    port = stable_port()
    body = ("process.metrics.counter('cakes', 'Cakes.').inc()", "print('starting', flush=True)")
    wait = "await asyncio.to_thread(sys.stdin.readline)"
    arguments = ("--metrics-port", str(port), "--drain-delay-s", "3600")
    with oven("import sys", *body, wait, arguments=arguments) as process:
        assert first_line(process) == "starting\n"
        assert scrape(f"127.0.0.1:{port}").value("premoe:cakes_total") == 1
        assert process.stdin is not None
        process.stdin.write("go on\n")
        process.stdin.flush()
        assert json.loads(first_line(process))["metrics"] == f"127.0.0.1:{port}"
        process.send_signal(signal.SIGTERM)
        assert scrape(f"127.0.0.1:{port}").value("premoe:build_info") == 1
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=60) == ("", "")
        assert process.returncode == 0


@pytest.mark.parametrize(("host", "code"), [("127.0.0.1", 6), ("203.0.113.1", 2)])
def test_a_metrics_port_that_cannot_be_had_is_one_line(host: str, code: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with oven(arguments=("--metrics-port", port, "--metrics-host", host)) as process:
            out, errors = process.communicate(timeout=60)
    assert (process.returncode, out, errors.count("\n")) == (code, "", 1)
    assert errors.startswith("error: ")
    assert port in errors


def test_a_metrics_port_that_is_none_is_one_line() -> None:
    with oven(arguments=("--metrics-port", "70000")) as process:
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.count("\n")) == (2, 1)
    assert errors.startswith("error: --metrics-port (PREMOE_OVEN_METRICS_PORT): ")
