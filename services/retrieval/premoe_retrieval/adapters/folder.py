"""The folder of an embedded index: held by one process, kept for the next one or gone with this one."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO

from premoe_runtime.formats.errors import InvalidInput, Unavailable
from premoe_runtime.storage.failures import mapped_errors

PREFIX = "premoe-index-"
LOCK = ".lock"
ROOM_BYTES = 64 << 20
"""Free bytes without which nothing is written: the engine writes through memory maps, and a disk that is full under
one ends the process by a signal. A batch of points and a new segment of the log need less."""
_LOCAL_MODE = "collection"

log = logging.getLogger(__name__)


class IndexFolder:
    """``path`` while it is ours; ``close`` lets go of it, and removes a temporary one."""

    def __init__(self, path: Path | None) -> None:
        """Hold ``path``, or a new temporary folder.

        Raises InvalidInput (held by another process; no right to it; read-only), Unavailable and Exhausted.
        """
        self._kept = path is not None
        with mapped_errors(f"index folder {path or tempfile.gettempdir()}"):
            self.path, self._lock = _temporary() if path is None else _hold(path)
        if (self.path / _LOCAL_MODE).is_dir():
            log.warning(
                "%s also holds the index of an older version, which is not read: live sets are indexed again, other "
                "sets by publishing them; its folder %r and meta.json can be deleted",
                self.path,
                _LOCAL_MODE,
            )

    def check_room(self) -> None:
        """Raise Unavailable (INDEX_FULL) where there is no room to write."""
        free = shutil.disk_usage(self.path).free
        if free < ROOM_BYTES:
            raise Unavailable(
                f"index folder {self.path} has {free >> 20} MiB left, and writing needs {ROOM_BYTES >> 20}; "
                "free some room",
                reason="INDEX_FULL",
            )

    def close(self) -> None:
        if not self._kept:
            shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def _hold(path: Path) -> tuple[Path, IO[bytes]]:
    path.mkdir(parents=True, exist_ok=True)
    lock = (path / LOCK).open("ab")
    if not _locked(lock):
        lock.close()
        raise InvalidInput(
            f"index folder {path} is held by another process; give every process a folder of its own, "
            "or use a Qdrant server",
            reason="INDEX_LOCKED",
        )
    return path, lock


def _temporary() -> tuple[Path, IO[bytes]]:
    """A new folder, locked before it can be taken for a dead process's."""
    _sweep(Path(tempfile.gettempdir()))
    path = Path(tempfile.mkdtemp(prefix=PREFIX))
    partial = path / f"{LOCK}.new"
    lock = partial.open("ab")
    _locked(lock)
    partial.rename(path / LOCK)
    return path, lock


def _sweep(parent: Path) -> None:
    """Remove what processes left that were killed: a lock that can be had is a dead process's."""
    for found in parent.glob(f"{PREFIX}*/{LOCK}"):
        with suppress(OSError), found.open("ab") as lock:
            if os.fstat(lock.fileno()).st_uid == os.getuid() and _locked(lock):
                shutil.rmtree(found.parent, ignore_errors=True)


def _locked(lock: IO[bytes]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
