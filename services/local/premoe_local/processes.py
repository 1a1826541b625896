"""Child processes of the mesh: start, read their logs, wait until they serve, stop. Knows no service by name."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from premoe_servicekit.clients import channel_options

from premoe_runtime.formats.errors import PremoeError, Unavailable

STOP_GRACE_S = 10.0
_TAIL_LINES = 20
_POLL_S = 0.02
_ERROR = "error: "
_BY_EXIT_CODE = {kind.exit_code: kind for kind in PremoeError.__subclasses__()}

LogSink = Callable[[str, str], None]
"""Receives (name of the child, line)."""


class Child:
    """One service in a process group of its own, so that Ctrl-C reaches only us and we stop it in order."""

    def __init__(
        self, name: str, module: str, arguments: Sequence[str], log: LogSink, environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self._log = log
        self._command = [sys.executable, "-m", "premoe_local.child", module, *arguments]
        self._environment = {**os.environ, **environment, "PYTHONUNBUFFERED": "1"}
        self._start(self._command)

    def _start(self, command: Sequence[str]) -> None:
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._ready = threading.Event()
        self._announced: Mapping[str, str] = {}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=self._environment,
        )
        self._readers = [
            threading.Thread(target=self._read_stdout, daemon=True),
            threading.Thread(target=self._read_stderr, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exited(self) -> bool:
        return self._process.poll() is not None

    def wait_ready(self, timeout_s: float) -> Mapping[str, str]:
        """The fields of the child's ready line (`address`). Raises as ``check``, and Unavailable: it takes too long."""
        deadline = time.monotonic() + timeout_s
        while not self._ready.wait(_POLL_S):
            self.check()
            if time.monotonic() > deadline:
                raise Unavailable(f"{self.name} was not ready within {timeout_s:.0f} s", reason="START_TIMEOUT")
        return self._announced

    def check(self) -> None:
        """When it has exited, raise what it said it ended with: the error of its exit code, else Unavailable."""
        code = self._process.poll()
        if code is None:
            return
        for reader in self._readers:
            reader.join(timeout=1)
        kind = _BY_EXIT_CODE.get(code, Unavailable)
        raise kind(f"{self.name} stopped{_how(code)}: {self._last_words()}", reason="PROCESS_EXITED")

    def start_again(self, *arguments: str) -> None:
        """A new process in place of one that has exited, with more ``arguments``."""
        self.stop()
        self._start([*self._command, *arguments])

    def terminate(self) -> None:
        """Ask it to stop."""
        if not self.exited:
            self._signal(signal.SIGTERM)

    def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """Ask it to stop, wait, and kill it when it does not. Safe to call twice.

        One that is not ready yet has nothing to finish, and while it loads a model it would hear nothing: no wait.
        """
        self.terminate()
        try:
            self._process.wait(grace_s if self._ready.is_set() else 0)
        except subprocess.TimeoutExpired:
            pass
        finally:
            # Also when a second Ctrl-C ends the wait: nothing may be left running.
            self._signal(signal.SIGKILL)
            self._process.wait()
        for reader in self._readers:
            reader.join(timeout=1)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def kill(self) -> None:
        """SIGKILL, for tests of faults."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self._process.poll() is None:
                os.killpg(self._process.pid, number)

    def _read_stdout(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            announced = _ready_fields(line)
            if announced:
                self._announced = announced
                self._ready.set()
            else:
                self._say(line)

    def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._say(line)

    def _say(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        if text:
            self._tail.append(text)
        if text and not text.startswith(_ERROR):  # its last words: who asks how it ended says them
            self._log(self.name, text)

    def _last_words(self) -> str:
        """The child's `error:` line, else its last one."""
        for line in reversed(self._tail):
            if line.startswith(_ERROR):
                return line.removeprefix(_ERROR)
        return self._tail[-1] if self._tail else "it said nothing"


def wait_serving(child: Child, address: str, timeout_s: float) -> None:
    """Wait until the child's gRPC health says SERVING. Raises as ``check``, and Unavailable: it takes too long."""
    deadline = time.monotonic() + timeout_s
    with grpc.insecure_channel(address, options=channel_options()) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while True:
            child.check()
            try:
                response = stub.Check(health_pb2.HealthCheckRequest(), timeout=2)
                if response.status == health_pb2.HealthCheckResponse.SERVING:
                    return
            except grpc.RpcError:
                pass
            if time.monotonic() > deadline:
                raise Unavailable(f"{child.name} did not serve within {timeout_s:.0f} s", reason="START_TIMEOUT")
            time.sleep(_POLL_S)


def _ready_fields(line: bytes) -> Mapping[str, str]:
    """The fields of a ready line; empty for any other line."""
    if not line.startswith(b"{"):
        return {}
    try:
        document = json.loads(line)
    except ValueError:
        return {}
    if not isinstance(document, dict) or document.get("ready") is not True:
        return {}
    return {name: str(value) for name, value in document.items()}


def _how(code: int) -> str:
    return f" by signal {signal.Signals(-code).name}" if code < 0 else f" with exit code {code}"
