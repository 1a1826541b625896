"""What the kernel and the environment say of this machine, and of the container that this process is in."""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from premoe_local.doctor.facts.control_group import Group, group_of

_VARIABLES = (
    "GLIBC_TUNABLES",
    "LD_PRELOAD",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
)


@dataclass(frozen=True, slots=True)
class Room:
    """A file system: bytes in all, and bytes left."""

    size: int
    free: int


@dataclass(frozen=True, slots=True)
class Machine:
    """Sizes are bytes. What could not be read is empty or None; of a limit None is: no limit."""

    congestion: str = ""
    congestion_choices: tuple[str, ...] = ()
    """What may be chosen without loading a module."""
    somaxconn: int | None = None
    memory: Room = field(default_factory=lambda: Room(0, 0))
    """Main memory: in all, and what the kernel thinks may still be taken."""
    group: Group = field(default_factory=Group)
    cores: int = 1
    """Processors that this process may run on."""
    shared: Room | None = None
    """/dev/shm."""
    huge_shared: str = ""
    """Which shared memory gets huge pages: always, within_size, advise, never, deny or force."""
    locked: int | None = None
    """Bytes that this process may lock in memory."""
    files: int | None = None
    """Files that this process may have open."""
    has_rdma: bool = False
    libc: str = ""
    """``glibc``, or what else C programs run on here; empty where nobody knows."""
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def free_bytes(self) -> int:
        """Main memory that this process may still take, by the kernel's estimate and its container's limit."""
        group = self.group
        if group.limit is None or group.used is None:
            return self.memory.free
        return max(0, min(self.memory.free, group.limit - group.used))


def look(root: Path = Path("/"), environment: Mapping[str, str] = os.environ) -> Machine:
    """Look at this machine; ``root`` is where its /proc, /sys and /dev lie."""
    net = root / "proc/sys/net"
    shared = root / "dev/shm"
    return Machine(
        congestion=_word(net / "ipv4/tcp_congestion_control"),
        congestion_choices=tuple(_word(net / "ipv4/tcp_available_congestion_control").split()),
        somaxconn=_number(_word(net / "core/somaxconn")),
        memory=_memory(root / "proc/meminfo"),
        group=group_of(root),
        cores=len(os.sched_getaffinity(0)),
        shared=_room(shared) if shared.is_dir() else None,
        huge_shared=_chosen(_word(root / "sys/kernel/mm/transparent_hugepage/shmem_enabled")),
        locked=_limit(resource.RLIMIT_MEMLOCK),
        files=_limit(resource.RLIMIT_NOFILE),
        has_rdma=(root / "dev/infiniband").is_dir(),
        libc=platform.libc_ver()[0],
        environment={name: environment[name] for name in _VARIABLES if environment.get(name)},
    )


def _word(place: Path) -> str:
    with suppress(OSError):
        return place.read_text().strip()
    return ""


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() else None


def _chosen(text: str) -> str:
    """``always [advise] never`` → ``advise``."""
    return text.partition("[")[2].partition("]")[0]


def _memory(place: Path) -> Room:
    lines = dict(line.split(":", 1) for line in _word(place).splitlines() if ":" in line)
    total, free = (int(lines.get(name, "0").split()[0]) << 10 for name in ("MemTotal", "MemAvailable"))
    return Room(total, free)


def _room(place: Path) -> Room | None:
    with suppress(OSError):
        status = os.statvfs(place)
        return Room(status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize)
    return None


def _limit(number: int) -> int | None:
    soft, _ = resource.getrlimit(number)
    return None if soft == resource.RLIM_INFINITY else soft
