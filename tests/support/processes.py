"""Children that serve: start one, wait for its ready line, stop it by pid, whatever happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

STOP_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Child:
    """A process that printed its ready line."""

    process: subprocess.Popen[bytes]
    ready: dict[str, object]
    stderr_path: Path

    @property
    def address(self) -> str:
        return str(self.ready["address"])

    def stderr(self) -> str:
        return self.stderr_path.read_text()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait; returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(STOP_TIMEOUT_S)


@contextmanager
def serving(
    module: str, arguments: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> Iterator[Child]:
    """Run ``module.main()`` as a child, wait until it serves, stop it at the end. Raises AssertionError if it ends."""
    with tempfile.TemporaryDirectory() as folder:
        stderr_path = Path(folder, "stderr")
        with stderr_path.open("wb") as stderr:
            process = subprocess.Popen(
                command(module, arguments), stdout=subprocess.PIPE, stderr=stderr, env=environ(environment)
            )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, f"{module} ended: {stderr_path.read_text()}"
            yield Child(process, json.loads(line), stderr_path)
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            assert process.stdout is not None
            process.stdout.close()


def run_to_end(
    module: str, arguments: Sequence[str] = (), environment: Mapping[str, str] | None = None, timeout_s: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """Run ``module.main()`` to its end."""
    return subprocess.run(
        command(module, arguments), capture_output=True, text=True, env=environ(environment), timeout=timeout_s
    )


def command(module: str, arguments: Sequence[str]) -> list[str]:
    """The command line of ``module.main()`` under this interpreter."""
    name = "premoe-" + module.split(".")[0].removeprefix("premoe_").replace("_", "-")
    start = f"import sys; sys.argv[0] = {name!r}; from {module} import main; main()"
    return [sys.executable, "-c", start, *arguments]


def environ(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without settings and exporters of its own, plus ``extra``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREMOE_", "OTEL_"))}
    return {**kept, **(extra or {})}


def engine_process(worker: int) -> int:
    """Id of the process that a worker started for its engine."""
    (found,) = engine_processes(worker)
    return found


def engine_processes(worker: int) -> list[int]:
    """Of an engine on several ranks."""
    threads = Path(f"/proc/{worker}/task").iterdir()
    children = {int(pid) for thread in threads for pid in (thread / "children").read_text().split()}
    return [pid for pid in sorted(children) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
