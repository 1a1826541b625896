"""Files of the store's cache in a folder that both see: copied out of mappings that are kept.

Page faults are the cost of a fresh mapping: one that was touched before copies at the speed of memory, a new one or
preadv at a third of it. Mappings are few, and go when their file is unlinked: they would hold its memory.
"""

from __future__ import annotations

import mmap
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from premoe_dataplane.plan import Scheme
from premoe_dataplane.stopped import Stopped
from premoe_dataplane.transports.base import Landed, Part
from premoe_runtime.formats.pieces import piece

MOST_MAPPINGS = 1024
SWEEP_S = 2.0


class FileTransport:
    """Implements Transport for ``file``. A file that is not there, or has another size, has no piece that lands."""

    scheme: Scheme = "file"

    def __init__(self, most: int = MOST_MAPPINGS, sweep_s: float = SWEEP_S) -> None:
        self._most, self._sweep_s = most, sweep_s
        self._lock = threading.Lock()
        self._mappings: OrderedDict[str, _Mapping] = OrderedDict()
        self._sweeper: threading.Thread | None = None
        self._closed = threading.Event()

    def read(self, parts: Sequence[Part], landed: Landed, stopped: Callable[[], bool]) -> None:
        for part in parts:
            mapping = self._mapping(part.source.url, part.source.offset, part.blob.num_bytes)
            if mapping is None:
                continue
            room = np.frombuffer(part.into, np.uint8)
            for index in part.pieces:
                if stopped():
                    raise Stopped
                where = piece(index, part.blob.num_bytes)
                start = part.source.offset + where.offset
                # numpy lets other threads run meanwhile; a slice of a memoryview would not.
                np.copyto(room[where.offset : where.end], mapping.data[start : start + where.length])
                landed(part, index)

    def close(self) -> None:
        self._closed.set()
        with self._lock:
            self._mappings.clear()
            sweeper = self._sweeper
        if sweeper is not None:
            sweeper.join()

    @property
    def mapped(self) -> int:
        """Files that are mapped now."""
        return len(self._mappings)

    def _mapping(self, path: str, offset: int, num_bytes: int) -> _Mapping | None:
        with self._lock:
            mapping = self._mappings.get(path)
            if mapping is not None and not mapping.stale(path):
                self._mappings.move_to_end(path)
                return mapping if _fits(mapping.num_bytes, offset, num_bytes) else None
            self._mappings.pop(path, None)
        mapping = _open(path, offset, num_bytes)
        if mapping is not None:
            self._keep(path, mapping)
        return mapping

    def _keep(self, path: str, mapping: _Mapping) -> None:
        with self._lock:
            if self._closed.is_set():
                return
            self._mappings[path] = mapping
            while len(self._mappings) > self._most:
                self._mappings.popitem(last=False)
            if self._sweeper is None:
                self._sweeper = threading.Thread(target=self._sweep, name="premoe-fetch-sweep", daemon=True)
                self._sweeper.start()

    def _sweep(self) -> None:
        """Let go of unlinked files also while nobody reads, until there are none."""
        while True:
            self._closed.wait(self._sweep_s)
            with self._lock:
                for path in [path for path, mapping in self._mappings.items() if mapping.stale(path)]:
                    del self._mappings[path]
                if not self._mappings or self._closed.is_set():
                    self._sweeper = None
                    return


@dataclass(frozen=True, slots=True, eq=False)
class _Mapping:
    """A file's bytes, read-only; unmapped when nobody holds it any more."""

    data: NDArray[np.uint8]
    num_bytes: int
    device: int
    inode: int

    def stale(self, path: str) -> bool:
        """Whether the file has no name any more, or another one has it. Blobs are written anew, never changed."""
        try:
            now = os.stat(path, follow_symlinks=False)
        except OSError:
            return True
        return (now.st_dev, now.st_ino, now.st_size) != (self.device, self.inode, self.num_bytes)


def _open(path: str, offset: int, num_bytes: int) -> _Mapping | None:
    """The whole file; None when it is not there or no file of the right size, which reading would fault on."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or not _fits(found.st_size, offset, num_bytes):
            return None
        mapped = mmap.mmap(descriptor, found.st_size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return _Mapping(np.frombuffer(mapped, np.uint8), found.st_size, found.st_dev, found.st_ino)


def _fits(size: int, offset: int, num_bytes: int) -> bool:
    """Whether a file of ``size`` is that of the blob: exactly it, or one in which it is not the first."""
    return size == num_bytes if offset == 0 else size >= offset + num_bytes
