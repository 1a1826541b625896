"""Main memory: how much there is, and how the allocator and the kernel hand it out."""

from __future__ import annotations

from premoe_local.console import human_bytes
from premoe_local.doctor.facts.machine import Machine
from premoe_local.doctor.finding import Finding, State, ok, skipped

CLIFF_BYTES = 32 << 20
"""Above, glibc maps and gives back every allocation, unless it is told otherwise."""
LOW_SHARE, LAST_SHARE = 0.15, 0.05
LEAST_SHARED = 256 << 20
LEAST_LOCKED = 1 << 30
_THRESHOLDS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
_TUNABLES = ("glibc.malloc.mmap_threshold", "glibc.malloc.trim_threshold")
_SET_BOTH = "MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=2147483648, in digits, before the process starts"
_OTHER_ALLOCATORS = ("jemalloc", "tcmalloc", "mimalloc")
_PAGE = "docs/doctor.md"


def judge(machine: Machine, blob_bytes: int | None = None) -> list[Finding]:
    """``blob_bytes`` of a pack, where one is known, says whether glibc's cliff matters."""
    return [
        _limit(machine),
        _shared(machine),
        _huge(machine),
        malloc(machine, blob_bytes),
        _locked(machine),
    ]


def _limit(machine: Machine) -> Finding:
    check, group = "memory limit", machine.group
    total, available = machine.memory.size, machine.memory.free
    if group.limit is None or group.used is None:
        free, whole, found = available, total, f"none; {human_bytes(available)} of {human_bytes(total)} are free"
    else:
        free, whole = max(0, group.limit - group.used), group.limit
        found = f"{human_bytes(free)} of {human_bytes(group.limit)} are free, on the machine {human_bytes(available)}"
    if not whole:
        return skipped(check, "the kernel does not say")
    if free < whole * LOW_SHARE:
        state: State = "error" if free < whole * LAST_SHARE else "warning"
        why = (
            "what goes over is killed by the kernel without a word; by default a worker takes a quarter of what is free"
        )
        change = "raise the limit, or give --host-memory and fewer --slots"
        return Finding(check, state, found, why, change, "premoe_runtime/residency/host_tier.py")
    if group.limit is not None and group.version == 1:
        why = (
            "this is control groups of version 1, whose limit workers do not read: they take their share of the machine"
        )
        change = "say how much: --host-memory-bytes of the worker, or spec.engine.hostMemory"
        return Finding(check, "warning", found, why, change, "premoe_runtime/residency/host_tier.py")
    if group.limit is not None and free > available:
        why = "the machine runs out of memory before the limit is reached, and then the kernel kills whom it likes"
        return Finding(
            check, "warning", found, why, "lower the limit, or free the machine", "no factor: it is a failure"
        )
    return ok(check, found)


def _shared(machine: Machine) -> Finding:
    check, shared = "shared memory", machine.shared
    if shared is None:
        found, room = "there is no /dev/shm", 0
    else:
        found, room = f"{human_bytes(shared.free)} of {human_bytes(shared.size)} are free in /dev/shm", shared.free
    if room >= LEAST_SHARED:
        return ok(check, found)
    return Finding(
        check,
        "warning",
        found,
        "between processes of one node shared memory is the only thing at the speed of memcpy: 9.5 GB/s against 1.7 "
        "over gRPC; ranks of vLLM talk through /dev/shm and fail where it is full. Containers get 64 MiB by default",
        "docker run --shm-size=1g; in a cluster spec.workers.sharedMemorySize, which counts in the memory limit",
        "data-plane.md §1, finding 6, and §5",
    )


def _huge(machine: Machine) -> Finding:
    check, found = "huge pages of shared memory", machine.huge_shared
    if not found:
        return skipped(check, "the kernel does not say")
    if found not in ("never", "deny"):
        return ok(check, found)
    return Finding(
        check,
        "warning",
        found,
        "the host tier asks for them: without, memory that is written for the first time takes 1.4 GB/s in place of "
        "10 to 11, and what another process reads from it first 6 in place of 14",
        "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled, on the node",
        f"{_PAGE}, measured on tmpfs",
    )


def malloc(machine: Machine, blob_bytes: int | None = None) -> Finding:
    """Thresholds of glibc, from the variables and from GLIBC_TUNABLES."""
    check, given = "malloc", machine.environment
    if machine.libc != "glibc" or any(name in given.get("LD_PRELOAD", "") for name in _OTHER_ALLOCATORS):
        return ok(check, "not glibc's")
    tunables = dict(part.partition("=")[::2] for part in given.get("GLIBC_TUNABLES", "").split(":"))
    values = [
        tunables.get(tunable) or given.get(name, "") for tunable, name in zip(_TUNABLES, _THRESHOLDS, strict=True)
    ]
    found = ", ".join(f"{name}={value or 'unset'}" for name, value in zip(_THRESHOLDS, values, strict=True))
    if odd := next((value for value in values if value and not value.isdecimal()), ""):
        why = f"glibc reads {odd} as {_leading(odd)} bytes and maps every allocation: 2.1 GB/s in place of 15 at 16 MB"
        return Finding(check, "error", found, why, _SET_BOTH, f"{_PAGE}, measured with glibc 2.36")
    if any(values) and not all(int(value or 0) > CLIFF_BYTES for value in values):
        why = "one without the other, or a small one, gives memory back at once: 2.1 GB/s in place of 15 to 24 at 16 MB"
        return Finding(check, "warning", found, why, _SET_BOTH, f"{_PAGE}, measured with glibc 2.36")
    if all(values):
        return ok(check, found)
    if blob_bytes is not None and blob_bytes <= CLIFF_BYTES:
        return ok(check, f"{found}; blobs of {human_bytes(blob_bytes)} stay below the cliff at 32 MiB")
    why = (
        "glibc maps every allocation above 32 MiB and gives it back: 2.1 GB/s at 44 MB in place of 14 to 17. Slots and "
        "pieces of 8 MiB never pay that; what libraries allocate whole for a larger blob does"
    )
    change = f"{_SET_BOTH}; the process then keeps what it freed"
    return Finding(check, "warning", found, why, change, "data-plane.md §1, finding 3")


def _leading(text: str) -> str:
    return text[: len(text) - len(text.lstrip("0123456789"))] or "0"


def _locked(machine: Machine) -> Finding:
    check, limit = "locked memory", machine.locked
    found = "no limit" if limit is None else f"{human_bytes(limit)} at most"
    if limit is None or limit >= LEAST_LOCKED or not machine.has_rdma:
        return ok(check, found if limit is None or machine.has_rdma else f"{found}, enough without RDMA")
    return Finding(
        check,
        "warning",
        found,
        "RDMA registers memory by locking it; a transfer engine falls back to TCP or fails, and TCP carries 2.4 to 4.6 "
        "times less",
        "ulimit -l unlimited, LimitMEMLOCK=infinity of the service, or the container's ulimits",
        "data-plane.md §10, published by Mooncake",
    )
