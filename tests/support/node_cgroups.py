"""Control groups of the test node: one folder of its own in every hierarchy of version 1, removed at the end.

Version 2 alone is refused: the harness has not been seen to work there.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "premoe-node-"
RUNTIME = "k8s.io"
"""Folder that containerd makes for what it runs outside pods."""
NEEDED = frozenset({"cpu", "cpuacct", "cpuset", "memory", "pids"})
REMOVE_TIMEOUT_S = 10.0
STALE_S = 120.0
"""Longer than a node takes from its first folder to its first pod."""
CPU_SHARES = 8 * 1024
"""Weight of a node; a process outside has 1024."""


def hierarchies(mounts: str) -> dict[str, Path]:
    """Controllers of version 1, and where their hierarchies are mounted; from the text of /proc/self/mountinfo."""
    found = {}
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup":
            for option in options.split(","):
                found[option] = Path(before.split(" ")[4])
    return {name: path for name, path in found.items() if name not in ("rw", "ro")}


def roots(mounts: str) -> set[Path]:
    """Where hierarchies of both versions are mounted: the runtime makes folders in that of version 2 as well."""
    lines = [line.partition(" - ") for line in mounts.splitlines()]
    return {Path(before.split(" ")[4]) for before, _, after in lines if after.split(" ")[0] in ("cgroup", "cgroup2")}


def problem(mounts: str | None = None) -> str | None:
    """Why no node can have control groups on a machine with these mounts (default: this one's), or None."""
    found = hierarchies(_mounts() if mounts is None else mounts)
    if not set(found) >= NEEDED:
        return "this machine mounts no cgroup v1 hierarchies for " + ", ".join(sorted(NEEDED - set(found)))
    foreign = sorted(str(path) for root in set(found.values()) for path in root.glob("kubepods*"))
    if foreign:
        return f"another kubelet uses this machine: {foreign[0]} exists"
    return None


@contextmanager
def control_groups() -> Iterator[str]:
    """A new folder in every hierarchy; yields its name. At the end it goes, with all below it. Raises TimeoutError."""
    sweep()
    everywhere = roots(_mounts())
    name = PREFIX + secrets.token_hex(4)
    runtime_before = {root for root in everywhere if (root / RUNTIME).exists()}
    for root in everywhere:
        (root / name).mkdir()
    # All pods together would otherwise get no more of the processors than one other process of this machine.
    (hierarchies(_mounts())["cpu"] / name / "cpu.shares").write_text(str(CPU_SHARES))
    try:
        yield name
    finally:
        for root in everywhere:
            _remove(root / name)
            if root not in runtime_before:
                _remove(root / RUNTIME)


def leftovers() -> list[Path]:
    """Folders of nodes that exist now."""
    return sorted(path for root in roots(_mounts()) for path in root.glob(f"{PREFIX}*"))


def sweep(pattern: str = f"{PREFIX}*", older_than_s: float = STALE_S) -> None:
    """Remove what killed runs left: folders without a process, and not of a node that starts just now."""
    for folder in (folder for root in roots(_mounts()) for folder in root.glob(pattern)):
        below = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
        in_use = any((path / "cgroup.procs").read_text() for path in below)
        if not in_use and time.time() - folder.stat().st_mtime >= older_than_s:
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a folder and those below; the kernel lets go of killed processes a little later. Raises TimeoutError."""
    deadline = time.monotonic() + REMOVE_TIMEOUT_S
    while folder.exists():
        below = [path for path in folder.rglob("*") if path.is_dir()]
        try:
            for path in [*sorted(below, key=lambda path: len(path.parts), reverse=True), folder]:
                path.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{folder} still has processes in it") from None
            time.sleep(0.05)


def _mounts() -> str:
    return Path("/proc/self/mountinfo").read_text()
