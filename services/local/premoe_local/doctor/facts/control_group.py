"""The control group that this process is in: what memory and processor time its container may take.

https://docs.kernel.org/admin-guide/cgroup-v2.html, https://docs.kernel.org/admin-guide/cgroup-v1/memory.html
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_NO_LIMIT = 1 << 60
"""Version 1 says "no limit" as a number of pages that no machine has."""


@dataclass(frozen=True, slots=True)
class Group:
    """``version`` 0: none was found. ``used`` leaves out what the kernel can take back; None where nothing is told."""

    version: int = 0
    limit: int | None = None
    """Bytes of memory, the least of this group and those around it."""
    used: int | None = None
    cores: float | None = None
    """Processors' worth of time that it may take."""


def group_of(root: Path) -> Group:
    """The group of this process, seen below ``root``."""
    places = _places(root / "proc/self/cgroup")
    mount = root / "sys/fs/cgroup"
    if "memory" in places:
        return _first_version(mount, places)
    if "" in places and (mount / "cgroup.controllers").exists():
        return _second_version(mount, places[""])
    return Group()


def _places(file: Path) -> dict[str, str]:
    """Path of the group by controller; by "" in version 2."""
    found: dict[str, str] = {}
    with suppress(OSError):
        for line in file.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            found |= dict.fromkeys(controllers.split(","), path)
    return found


def _second_version(mount: Path, path: str) -> Group:
    limit, used, cores = None, None, None
    for folder in _upwards(mount, path):
        found = _number(folder / "memory.max")
        if found is not None and (limit is None or found < limit):
            limit, used = found, _used(folder, "memory.current", "inactive_file")
        quota = _words(folder / "cpu.max")
        if len(quota) == 2 and quota[0].isdecimal():
            cores = min(cores or 1e9, int(quota[0]) / int(quota[1]))
    return Group(2, limit, used, cores)


def _first_version(mount: Path, places: dict[str, str]) -> Group:
    limit, used, cores = None, None, None
    for folder in _upwards(mount / "memory", places["memory"]):
        found = _number(folder / "memory.limit_in_bytes")
        if found is not None and found < _NO_LIMIT and (limit is None or found < limit):
            limit, used = found, _used(folder, "memory.usage_in_bytes", "total_inactive_file")
    for folder in _upwards(mount / "cpu", places.get("cpu", "/")):
        quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if quota and period:
            cores = min(cores or 1e9, quota / period)
    return Group(1, limit, used, cores)


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """The group's folder and those around it; the mount alone where the path is of another namespace."""
    folder = mount / path.lstrip("/")
    if ".." in path or not folder.is_dir():
        folder = mount
    while True:
        yield folder
        if folder == mount:
            return
        folder = folder.parent


def _used(folder: Path, current: str, idle: str) -> int | None:
    found = _number(folder / current)
    if found is None:
        return None
    words = _words(folder / "memory.stat")
    reclaimable = dict(zip(words[::2], words[1::2], strict=False)).get(idle, "0")
    return max(0, found - int(reclaimable))


def _words(file: Path) -> list[str]:
    with suppress(OSError):
        return file.read_text().split()
    return []


def _number(file: Path) -> int | None:
    words = _words(file)
    return int(words[0]) if words and words[0].isdecimal() else None
