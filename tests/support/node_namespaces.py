"""Private mount, network, pid, uts and ipc namespaces: what runs inside neither sees nor changes this machine's.

A static program is the first process inside; when it is killed, the kernel ends every process and mount with it.
Nothing leads out of the network inside. Needs root.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.process_group import ProcessGroup, wait_until

FILES = Path(__file__).parent / "node_files"
ADDRESS = "10.200.0.1"
"""Of the node, inside."""
START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 30.0
HOLDER = "namespaces"
_CLONE_NEWNET = 0x40000000
_UNSHARE = [
    *("unshare", "--mount", "--net", "--pid", "--uts", "--ipc", "--mount-proc", "--propagation", "slave"),
    # unshare itself stays outside, and its end is the end of everything inside.
    *("--fork", "--kill-child"),
]


@dataclass(frozen=True, slots=True)
class Namespaces:
    """The namespaces of a running first process."""

    pid: int
    """Of the first process, as seen from outside."""
    folder: Path

    def command(self, *command: str) -> list[str]:
        """The command line that runs a command inside all of them."""
        return ["nsenter", "-t", str(self.pid), "-m", "-n", "-p", "-u", "-i", "--", *command]

    def run(
        self, *command: str, stdin: str | None = None, timeout_s: float = 60.0, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside to its end. Raises AssertionError with its messages if it fails and ``check`` is on."""
        done = subprocess.run(self.command(*command), input=stdin, capture_output=True, text=True, timeout=timeout_s)
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(command)} failed with {done.returncode}: {done.stderr or done.stdout}")
        return done

    @contextmanager
    def network(self) -> Iterator[None]:
        """The calling thread is inside the network for the block, and so are children and threads that it starts.

        Files, processes and everything else stay those of this machine.
        """
        with open("/proc/thread-self/ns/net") as before, open(f"/proc/{self.pid}/ns/net") as inside:
            _set_network(inside.fileno())
            try:
                yield
            finally:
                _set_network(before.fileno())


@contextmanager
def private_namespaces(folder: Path, group: ProcessGroup, first_process: Path) -> Iterator[Namespaces]:
    """Namespaces with a bridge and the node's address, until the block ends; then nothing of them is left.

    ``folder`` lies on a disk and takes what programs inside write to /var. Raises TimeoutError, AssertionError.
    """
    outer = group.start(HOLDER, [*_UNSHARE, str(first_process)])
    pid = None
    try:
        pid = _only_child(outer, first_process)
        inside = Namespaces(pid, folder)
        inside.run("sh", str(FILES / "prepare.sh"), str(folder), ADDRESS)
        yield inside
    finally:
        # unshare waits for its child and heeds SIGKILL only.
        group.stop(HOLDER, signal.SIGKILL)
        if pid is not None:
            wait_until(lambda: not _alive(pid), STOP_TIMEOUT_S, "the end of the node's first process")


def processes_inside(pid_namespace: str) -> list[int]:
    """Processes that run on this machine in the pid namespace given (as `/proc/PID/ns/pid` reads)."""
    numbers = [path.name for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [int(number) for number in numbers if _reads(Path("/proc", number), pid_namespace) and _alive(int(number))]


def _reads(process: Path, pid_namespace: str) -> bool:
    try:
        return os.readlink(process / "ns/pid") == pid_namespace
    except OSError:  # it ended meanwhile
        return False


def _alive(pid: int) -> bool:
    """Whether a process runs, not merely waits for its parent. The first of a namespace ends after all others in it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _only_child(parent: int, program: Path) -> int:
    """The child of ``parent`` once it runs ``program``, which is after its namespaces are made. Raises TimeoutError."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
            if children and os.readlink(f"/proc/{children[0]}/exe") == str(program):
                return int(children[0])
        except OSError:
            pass
        time.sleep(0.02)
    raise TimeoutError("unshare did not start the first process of the node's namespaces")


def _set_network(descriptor: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "the thread could not change its network namespace")


def build_static(source: Path, target: Path, tools: Sequence[str] = ("gcc", "cc")) -> Path:
    """Compile a C program without shared libraries. Raises FileNotFoundError without a compiler, CalledProcessError."""
    for tool in tools:
        try:
            subprocess.run([tool, "-static", "-Os", "-s", "-o", str(target), str(source)], check=True)
        except FileNotFoundError:
            continue
        return target.resolve()
    raise FileNotFoundError(f"none of {', '.join(tools)} is installed")
