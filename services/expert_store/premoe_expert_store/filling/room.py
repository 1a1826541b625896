"""Where a blob's bytes lie while it arrives: a draft of the node cache, or a nameless file in memory."""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from pathlib import Path

from premoe_expert_store.cache import Draft, NodeCache
from premoe_runtime.formats.errors import Exhausted


class Room:
    """A file of a blob's length. ``view`` is its memory, until ``unmap``; ``fd`` stays until ``close``."""

    def __init__(self, fd: int, num_bytes: int, cache: NodeCache | None = None, draft: Draft | None = None) -> None:
        self.fd = fd
        self.num_bytes = num_bytes
        self.memory_bytes = 0
        """What it takes of the memory beside the cache, to be given back."""
        self.path: Path | None = None
        self._cache, self._draft = cache, draft
        self._map: mmap.mmap | None = None
        self._view: memoryview | None = None

    @classmethod
    def of_draft(cls, cache: NodeCache, draft: Draft) -> Room:
        return cls(draft.fd, draft.num_bytes, cache, draft)

    @classmethod
    def in_memory(cls, num_bytes: int, memory_bytes: int) -> Room:
        """A nameless file. Raises Exhausted."""
        fd = os.memfd_create("premoe-blob", os.MFD_CLOEXEC)
        try:
            os.posix_fallocate(fd, 0, num_bytes)
        except OSError as error:
            os.close(fd)
            raise Exhausted(
                f"no memory for a blob of {num_bytes} bytes: {error.strerror}; give the store more memory",
                reason="NO_ROOM",
            ) from error
        room = cls(fd, num_bytes)
        room.memory_bytes = memory_bytes
        return room

    @classmethod
    def of_file(cls, fd: int, num_bytes: int, path: Path) -> Room:
        """A blob that is in the cache already."""
        room = cls(fd, num_bytes)
        room.path = path
        return room

    @property
    def view(self) -> memoryview:
        """Its memory, writable. Of an arrival only."""
        if self._view is None:
            self._map = mmap.mmap(self.fd, self.num_bytes)
            self._view = memoryview(self._map)
        return self._view

    def write(self, offset: int, data: memoryview) -> None:
        """Put bytes in their place: half of what it takes to write them to ``view``, whose pages must be made first."""
        while data:
            written = os.pwrite(self.fd, data, offset)
            data, offset = data[written:], offset + written

    def keep(self, digest: str) -> None:
        """Give it its name in the cache, where it lies there. Blocking."""
        if self._cache is not None and self._draft is not None:
            self.path = self._cache.keep(self._draft, digest)

    def unmap(self) -> None:
        """Let its memory go; whoever has a part of ``view`` keeps it until that is released."""
        if self._map is not None and self._view is not None:
            self._view.release()
            with suppress(BufferError):
                self._map.close()
        self._map = self._view = None

    def close(self) -> None:
        """Let everything go; what has no name is gone then. Blocking."""
        self.unmap()
        if self._cache is not None and self._draft is not None and self.path is None:
            self._cache.abandon(self._draft)
        os.close(self.fd)
