"""How quickly a folder's disk reads and writes: a file that is written there, read past the page cache, and gone."""

from __future__ import annotations

import fcntl
import mmap
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from premoe_local.console import human_bytes
from premoe_runtime.formats.errors import PremoeError
from premoe_runtime.storage.failures import mapped_errors

PIECE_BYTES = 4 << 20
MOST_BYTES = 512 << 20
LEAST_BYTES = 4 * PIECE_BYTES


@dataclass(frozen=True, slots=True)
class Disk:
    """``fault`` is why nothing could be measured. Speeds are bytes a second, ``free`` and ``num_bytes`` bytes.

    ``direct``: the page cache was passed by.
    """

    folder: str
    free: int
    fault: str = ""
    num_bytes: int = 0
    written: float = 0.0
    read: float = 0.0
    direct: bool = True
    in_memory: bool = False


def measure(folder: Path, seconds: float, clock: Callable[[], float] = time.perf_counter) -> Disk:
    """Write for at most ``seconds``, then read for as long.

    The file has no name from the start, where the file system can do that, so that nothing is left of a run that is
    killed; elsewhere its name goes at once.
    """
    try:
        with mapped_errors(str(folder)):
            return _measured(folder, seconds, clock)
    except PremoeError as error:
        return Disk(str(folder), 0, fault=str(error))


def _measured(folder: Path, seconds: float, clock: Callable[[], float]) -> Disk:
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    most = min(MOST_BYTES, free // 4) // PIECE_BYTES * PIECE_BYTES
    if most < LEAST_BYTES:
        return Disk(str(folder), free, fault=f"{human_bytes(free)} are free in {folder}")
    descriptor = _nameless(folder)
    try:
        written, num_bytes = _write(descriptor, most, seconds, clock)
        direct = _go_direct(descriptor)
        read = _read(descriptor, num_bytes, seconds, clock)
    finally:
        os.close(descriptor)
    return Disk(str(folder), free, "", num_bytes, written, read, direct, _is_memory(folder))


def _nameless(folder: Path) -> int:
    with suppress(OSError):
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    path = folder / f".premoe-doctor-{os.getpid()}-{int.from_bytes(os.urandom(6), 'big')}"
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    path.unlink()
    return descriptor


def _write(descriptor: int, most: int, seconds: float, clock: Callable[[], float]) -> tuple[float, int]:
    """Bytes a second, the disk's own cache included, and bytes written."""
    piece = os.urandom(PIECE_BYTES)  # some disks pass over zeros
    begun, done = clock(), 0
    while done < most and (done < LEAST_BYTES or clock() - begun < seconds):
        left = memoryview(piece)
        while left:
            left = left[os.write(descriptor, left) :]
        os.fdatasync(descriptor)
        done += PIECE_BYTES
    return done / max(clock() - begun, 1e-9), done


def _go_direct(descriptor: int) -> bool:
    """Have the file read past the page cache; False where its file system does not."""
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT)
        with mmap.mmap(-1, PIECE_BYTES) as room:
            os.preadv(descriptor, [room], 0)
    except OSError:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
        return False
    return True


def _read(descriptor: int, num_bytes: int, seconds: float, clock: Callable[[], float]) -> float:
    begun, done = clock(), 0
    with mmap.mmap(-1, PIECE_BYTES) as room:  # whole pages, as direct reads want them
        while done < num_bytes and (done < LEAST_BYTES or clock() - begun < seconds):
            done += os.preadv(descriptor, [room], done)
    return done / max(clock() - begun, 1e-9)


def _is_memory(folder: Path) -> bool:
    """Whether a folder lies in tmpfs, by the table of mounts."""
    best, kind = "", ""
    with suppress(OSError):
        for line in Path("/proc/self/mounts").read_text().splitlines():
            _, place, found, *_ = line.split()
            if folder.resolve().is_relative_to(place) and len(place) >= len(best):
                best, kind = place, found
    return kind in ("tmpfs", "ramfs")
