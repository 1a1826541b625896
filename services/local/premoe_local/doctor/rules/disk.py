"""The disk of a folder that is to hold a cache of experts."""

from __future__ import annotations

from premoe_local.doctor.facts.disk import Disk
from premoe_local.doctor.finding import Finding, ok

SLOW = 0.5e9
"""Bytes a second below which a peer's memory over 10 Gbit/s is twice as quick."""
_CHECK = "disk"


def judge(disk: Disk) -> Finding:
    if disk.fault:
        return Finding(
            _CHECK,
            "error",
            disk.fault,
            "a cache there holds nothing; no factor: it is a failure",
            "give it room and rights, or name another folder",
        )
    how = "from memory" if disk.in_memory else "past the page cache" if disk.direct else "through the page cache"
    found = f"{disk.folder}: {_speed(disk.read)} read {how}, {_speed(disk.written)} written"
    if disk.in_memory:
        return ok(_CHECK, f"{found}; it is memory, and counts in the limit")
    if not disk.direct:
        return Finding(
            _CHECK,
            "warning",
            found,
            "its file system reads nothing past the page cache: a blob then costs 0.34 to 0.37 CPU seconds a GB in "
            "place of 0.02 to 0.06, and the figure above is not the disk's",
            "put the cache on a local file system that knows O_DIRECT, as ext4 or xfs",
            "data-plane.md §1, finding 8",
        )
    if disk.read < SLOW:
        return Finding(
            _CHECK,
            "warning",
            found,
            "a virtual disk read 1.3 to 2.1 GB/s, other workers' memory over HTTP 4 to 7.5: at this speed a swap from "
            "this disk takes longer than from them or from object storage",
            "put the cache on a local NVMe disk, or leave it out",
            "data-plane.md §2 and §5",
        )
    return ok(_CHECK, found)


def _speed(bytes_a_second: float) -> str:
    return f"{bytes_a_second / 1e9:.2f} GB/s"
