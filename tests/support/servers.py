"""Real servers for tests on free loopback ports: Redis and S3 (versitygw). Each stops when its block ends."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

READY_SECONDS = 20.0
STOP_SECONDS = 10.0
ATTEMPTS = 3


class ServerMissing(RuntimeError):
    """A server's program is not installed here."""


@dataclass(frozen=True, slots=True)
class RedisServer:
    """A running redis-server without persistence."""

    url: str
    port: int
    process: subprocess.Popen[bytes]


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running versitygw with one empty bucket; buckets are folders of ``root``."""

    endpoint: str
    bucket: str
    root: Path
    env: Mapping[str, str]
    """The AWS_* variables that lead obstore, and child processes, here."""
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}"


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        assert isinstance(port, int)
        return port


def find_program(name: str) -> str:
    """The path of a server program: on PATH, or where ``go install`` puts it. Raises ServerMissing."""
    found = shutil.which(name) or shutil.which(name, path=f"/usr/sbin:{_go_folder()}")
    if found is None:
        raise ServerMissing(f"{name} is not installed; `make test` installs it")
    return found


@contextmanager
def redis_server(folder: Path, *options: str) -> Iterator[RedisServer]:
    """Start redis-server with its working folder in ``folder``; extra ``options`` go on its command line."""
    program = find_program("redis-server")

    def command(port: int) -> list[str]:
        fixed = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(folder)]
        return [program, *fixed, *options]

    with running(command, folder / "redis.log", ready=_redis_answers) as (port, process):
        yield RedisServer(f"redis://127.0.0.1:{port}/0", port, process)


@contextmanager
def s3_server(folder: Path, bucket: str = "test") -> Iterator[S3Server]:
    """Start versitygw over ``folder``/s3 with an empty ``bucket``."""
    program = find_program("versitygw")
    root = folder / "s3"
    (root / bucket).mkdir(parents=True)
    keys = {"ROOT_ACCESS_KEY": "test-access", "ROOT_SECRET_KEY": "test-secret"}

    def command(port: int) -> list[str]:
        return [program, "--quiet", "--port", f"127.0.0.1:{port}", "posix", str(root)]

    with running(command, folder / "s3.log", env=keys, ready=accepts) as (port, process):
        endpoint = f"http://127.0.0.1:{port}"
        env = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": keys["ROOT_ACCESS_KEY"],
            "AWS_SECRET_ACCESS_KEY": keys["ROOT_SECRET_KEY"],
            "AWS_REGION": "us-east-1",
        }
        yield S3Server(endpoint, bucket, root, env, process)


@contextmanager
def running(
    command: Callable[[int], list[str]],
    log: Path,
    *,
    ready: Callable[[int], bool] | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Start a server on a free port and wait until it answers; another port when somebody else took the first."""
    ready = ready or accepts
    for attempt in range(ATTEMPTS):
        port = free_port()
        with open(log, "wb") as out:
            process = subprocess.Popen(
                command(port), stdin=subprocess.DEVNULL, stdout=out, stderr=out, env={**os.environ, **(env or {})}
            )
        try:
            if _wait_ready(process, port, ready):
                yield port, process
                return
            if attempt == ATTEMPTS - 1 or process.poll() is None:
                text = log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{command(port)[0]} did not get ready on port {port}:\n{text}")
        finally:
            stop(process)


def start_again(server: RedisServer) -> RedisServer:
    """A new process on the port of one that has ended; whoever starts it calls `stop`. Raises RuntimeError."""
    process = subprocess.Popen(
        server.process.args, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    if not _wait_ready(process, server.port, _redis_answers):
        stop(process)
        raise RuntimeError(f"redis-server did not get ready again on port {server.port}")
    return RedisServer(server.url, server.port, process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a child: SIGTERM, and SIGKILL when it does not leave."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(STOP_SECONDS)


def _wait_ready(process: subprocess.Popen[bytes], port: int, ready: Callable[[int], bool]) -> bool:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if ready(port):
            return process.poll() is None
        time.sleep(0.02)
    return False


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _redis_answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False


def _go_folder() -> str:
    go = shutil.which("go")
    if go is None:
        return str(Path.home() / "go" / "bin")
    answer = subprocess.run([go, "env", "GOBIN", "GOPATH"], capture_output=True, text=True, check=True).stdout
    install, path = [*answer.splitlines(), "", ""][:2]
    return install or str(Path(path) / "bin")
