"""Memory, open files and threads of every process of a mesh."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from premoe_local.mesh import Mesh

MIB = 1 << 20
GROWTH_BYTES, GROWTH = 16 * MIB, 0.05
"""What private memory may grow by, whichever is more."""
SHARED_BYTES, FILES, THREADS = MIB, 8, 8
"""The same of shared memory, open files and threads: connections come and go, and so do the threads of pools, of which
asyncio's alone has up to four more than there are cores.
"""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes that are the process' own, and bytes shared with others that lie in no file."""

    private: int
    shared: int
    files: int
    threads: int


def footprints(mesh: Mesh, redis: int) -> dict[str, Footprint]:
    """Of every process that is there, by its name; a worker's own children are named after it."""
    pids = {"redis": redis, **{child.name: child.pid for child in mesh.children}}
    for child in mesh.children:
        with suppress(psutil.NoSuchProcess):
            for descendant in psutil.Process(child.pid).children(recursive=True):
                kind = "engine" if any("spawn_main" in word for word in descendant.cmdline()) else "helper"
                pids[f"{child.name}'s {kind}"] = descendant.pid
    found = {name: _footprint(pid) for name, pid in pids.items()}
    return {name: one for name, one in found.items() if one is not None}


def grown(before: Mapping[str, Footprint], after: Mapping[str, Footprint]) -> list[str]:
    """One line for each process that has become larger than it may, or is not there any more."""
    lines = [f"{name}: the process is gone" for name in before.keys() - after.keys()]
    for name in before.keys() & after.keys():
        was, now = before[name], after[name]
        bounds = {
            "private": max(GROWTH_BYTES, int(GROWTH * was.private)),
            "shared": SHARED_BYTES,
            "files": FILES,
            "threads": THREADS,
        }
        lines += [
            f"{name}: {what} went from {getattr(was, what)} to {getattr(now, what)}, more than {most} up"
            for what, most in bounds.items()
            if getattr(now, what) - getattr(was, what) > most
        ]
    return sorted(lines)


def _footprint(pid: int) -> Footprint | None:
    try:
        lines, files = Path(f"/proc/{pid}/status").read_text().splitlines(), len(os.listdir(f"/proc/{pid}/fd"))
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    if "RssAnon" not in fields:  # it has ended, and nobody has asked how
        return None
    private, shared = (int(fields[name][0]) << 10 for name in ("RssAnon", "RssShmem"))
    return Footprint(private, shared, files, int(fields["Threads"][0]))
