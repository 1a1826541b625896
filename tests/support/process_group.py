"""Long-running programs that belong together: each logs into a file, none survives the process that started them.

with ProcessGroup(folder / "logs") as group:
    group.start("etcd", ["etcd", "--data-dir", …])
    wait_until(lambda: answers(port), 20, "etcd to answer", group)
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

STOP_TIMEOUT_S = 15.0
TAIL_LINES = 20
# Waits for the end of its input, which comes when the test process closes it or dies in any way.
_REAPER = 'trap "" TERM; read -r _; kill -TERM 0; sleep 0.5; rm -rf -- "$@"; kill -KILL 0'


class ProcessEnded(RuntimeError):
    """A program ended on its own; the text shows the last lines of its log."""


class ProcessGroup:
    """Programs in a process group of their own, stopped in the reverse order of their start.

    The group has its own number so that Ctrl-C reaches only the test process, which then stops them in order. If the
    test process is killed, a shell in the group ends the programs and removes the folders in ``remove``.
    """

    def __init__(self, logs: Path, remove: Sequence[Path] = ()) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self._logs = logs
        self._remove = tuple(remove)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._paused: set[str] = set()
        self._reaper = subprocess.Popen(
            ["sh", "-c", _REAPER, "reaper", *map(str, self._remove)], stdin=subprocess.PIPE, process_group=0
        )

    def __enter__(self) -> ProcessGroup:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
        """Start a program (again); returns its pid. A program started again keeps its place in the order."""
        assert name not in self._running or self._running[name].poll() is not None, f"{name} runs already"
        with self.log(name).open("ab") as out:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=environment,
                process_group=self._reaper.pid,
            )
        self._running[name] = process
        return process.pid

    def stop(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal and wait for the end; SIGKILL when it takes too long. A program that ended is left alone."""
        process = self._running[name]
        if process.poll() is None:
            process.send_signal(number)
            self.resume(name)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()

    def pause(self, name: str) -> None:
        """Freeze a program with SIGSTOP: its connections stay open and nothing answers."""
        self._running[name].send_signal(signal.SIGSTOP)
        self._paused.add(name)

    def resume(self, name: str) -> None:
        if name in self._paused:
            self._paused.discard(name)
            self._running[name].send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Stop everything, last started first, and remove the folders."""
        for name in tuple(self._paused):  # a program may need a paused one to end in order
            self.resume(name)
        for name in reversed(self._running):
            self.stop(name)
        self._reaper.kill()
        self._reaper.wait()
        assert self._reaper.stdin is not None
        self._reaper.stdin.close()
        for folder in self._remove:
            shutil.rmtree(folder, ignore_errors=True)

    def pid(self, name: str) -> int:
        return self._running[name].pid

    def check(self, *names: str) -> None:
        """Raises ProcessEnded when one of the programs (all, if none is named) is no longer there."""
        for name in names or tuple(self._running):
            code = self._running[name].poll()
            if code is not None:
                raise ProcessEnded(f"{name} ended with code {code}; the end of its log:\n{self.tail(name)}")

    def log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def tail(self, name: str, lines: int = TAIL_LINES) -> str:
        """The last lines that a program logged."""
        return "\n".join(self.log(name).read_text(errors="replace").splitlines()[-lines:])


def wait_until(
    condition: Callable[[], bool],
    timeout_s: float,
    what: str,
    group: ProcessGroup | None = None,
    names: Sequence[str] = (),
    *,
    poll_s: float = 0.05,
) -> None:
    """Poll until the condition holds. Raises TimeoutError, or ProcessEnded once a named program of the group ends."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if group is not None:
            group.check(*names)
        if time.monotonic() > deadline:
            logs = "" if group is None else "".join(f"\n{name}:\n{group.tail(name)}" for name in names)
            raise TimeoutError(f"waited {timeout_s:g} s for {what}{logs}")
        time.sleep(poll_s)
