"""The folder of a node cache: one of its own that goes with the process, or a given one that several share.

A small file in it is the lock under which room is made, and says how many bytes are taken: (changes, bytes), so that a
process looks through the folder only when another has changed it and it is full.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from premoe_expert_store.cache.index import ARRIVING, BLOBS, Found
from premoe_runtime.formats.errors import InvalidInput

LEDGER = "premoe-cache"
PRIVATE_PREFIX = "premoe-blobs-"
LOCK_WAIT_S = 2.0
LOCK_COOL_DOWN_S = 5.0
"""How long nobody waits for the folder's lock any more, once it could not be had."""
MEMORY_FOLDER = Path("/dev/shm")
_LEDGER = struct.Struct("<QQ")


class Busy(Exception):
    """Another process has held the folder's lock for too long."""


class CacheFolder:
    """A folder with ``blobs/`` and ``arriving/`` below it. ``private``: no other process uses it. Blocking."""

    def __init__(self, path: Path, *, private: bool) -> None:
        self.path = path
        self.private = private
        self._left_alone_until = float("-inf")
        for name in (BLOBS, ARRIVING):
            (path / name).mkdir(exist_ok=True)
        self._ledger = os.open(path / LEDGER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if private:
            fcntl.flock(self._ledger, fcntl.LOCK_EX)  # as long as the process lives: others sweep what nobody holds

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Alone in the folder, across processes. Raises Busy."""
        if self.private:
            yield
            return
        patience = 0.0 if time.monotonic() < self._left_alone_until else LOCK_WAIT_S
        end = time.monotonic() + patience
        while not _try_lock(self._ledger):
            if time.monotonic() >= end:
                if patience:
                    self._left_alone_until = time.monotonic() + LOCK_COOL_DOWN_S
                raise Busy
            time.sleep(0.002)
        try:
            yield
        finally:
            fcntl.flock(self._ledger, fcntl.LOCK_UN)

    def ledger(self) -> tuple[int, int]:
        """Changes so far, and bytes taken; of a closed folder nothing."""
        if self._ledger < 0:
            return 0, 0
        data = os.pread(self._ledger, _LEDGER.size, 0)
        return _LEDGER.unpack(data) if len(data) == _LEDGER.size else (0, 0)

    def write_ledger(self, changes: int, taken_bytes: int) -> None:
        os.pwrite(self._ledger, _LEDGER.pack(changes, max(0, taken_bytes)), 0)

    def found(self) -> list[Found]:
        """Every file below ``blobs/``."""
        found: list[Found] = []
        for folder, _, names in os.walk(self.path / BLOBS):
            for name in names:
                place = os.path.join(folder, name)
                with suppress(OSError):
                    status = os.stat(place, follow_symlinks=False)
                    found.append(Found(os.path.relpath(place, self.path), status.st_size, status.st_mtime))
        return found

    def arriving_bytes(self) -> int:
        """Bytes of files that are being filled; those that nobody fills any more are removed. Under ``locked``."""
        total = 0
        for entry in os.scandir(self.path / ARRIVING):
            try:
                descriptor = os.open(entry.path, os.O_RDWR | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                if _try_lock(descriptor):
                    os.unlink(entry.path)
                else:
                    total += os.fstat(descriptor).st_size
            finally:
                os.close(descriptor)
        return total

    def close(self) -> None:
        """Lets the folder go; one of its own is removed."""
        if self.private:
            shutil.rmtree(self.path, ignore_errors=True)
        ledger, self._ledger = self._ledger, -1
        os.close(ledger)


def given_folder(path: Path) -> CacheFolder:
    """A folder whose blobs outlive the process; made where it is not there.

    Raises InvalidInput where it cannot be used, or holds what is not ours: unknown files of a cache are removed.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not (path / LEDGER).exists() and any((path / name).exists() for name in (BLOBS, ARRIVING)):
            raise InvalidInput(f"{path} is no cache of PreMoE, but holds {BLOBS}/; give it an empty folder")
        return CacheFolder(path, private=False)
    except OSError as error:
        raise InvalidInput(
            f"cache folder {path} cannot be used: {error.strerror}; give it a folder that it may write to",
            reason="CACHE_FOLDER",
        ) from error


def private_folder(wanted_bytes: int, parents: Sequence[Path] = ()) -> CacheFolder:
    """A folder that goes with the process: in the first of ``parents`` that has room, or the one that has most.

    Without ``parents`` in memory or under TMPDIR. Sweeps away folders of processes that were killed. Raises
    InvalidInput where none can be made.
    """
    parents = parents or [MEMORY_FOLDER, Path(tempfile.gettempdir())]
    for place in parents:
        _sweep(place)
    for place in sorted(parents, key=lambda place: -min(wanted_bytes, _free_bytes(place))):
        with suppress(OSError):
            return CacheFolder(Path(tempfile.mkdtemp(prefix=PRIVATE_PREFIX, dir=place)), private=True)
    places = " or ".join(map(str, parents))
    raise InvalidInput(f"no folder for blobs can be made in {places}; give one", reason="CACHE_FOLDER")


def _free_bytes(place: Path) -> int:
    try:
        return shutil.disk_usage(place).free
    except OSError:
        return 0


def _sweep(parent: Path) -> None:
    for path in parent.glob(PRIVATE_PREFIX + "*"):
        with suppress(OSError):
            descriptor = os.open(path / LEDGER, os.O_RDWR | os.O_CLOEXEC)
            try:
                if _try_lock(descriptor):
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
