"""The host tier's memory: a nameless file in main memory, mapped by who fetches blobs and by who owns the slots.

Both may be one process, or a process and its child. The file goes when nobody maps it any more, however they end.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import weakref
from collections.abc import Callable
from multiprocessing.reduction import DupFd
from typing import Any

import torch

from premoe_runtime.formats.errors import Exhausted
from premoe_runtime.residency.arena import HUGE_FROM_BYTES

MIN_BLOBS = 2
"""Blobs that stay free of pins, so that a swap always has a way through."""


class HostArena:
    """``capacity`` places of a blob each. Whoever was told a place reads or writes it, and nobody else.

    Pages are taken when they are written first. Handed to a child process as it is started, it is the same memory
    there. Raises Exhausted when there is no such room.
    """

    def __init__(self, blob_bytes: int, capacity_bytes: int) -> None:
        self._share(_new_file, blob_bytes, max(MIN_BLOBS, capacity_bytes // blob_bytes))

    @classmethod
    def attach(cls, fd: int, blob_bytes: int, capacity: int) -> HostArena:
        """The arena whose file this process has inherited as ``fd``, which is the arena's from now on."""
        arena = object.__new__(cls)
        arena._share(lambda num_bytes: fd, blob_bytes, capacity)
        return arena

    def __reduce__(self) -> tuple[Any, ...]:
        # Only multiprocessing's own start of a child knows how to hand a descriptor on; elsewhere this raises.
        return _attach, (DupFd(self.fd), self.blob_bytes, self.capacity)

    def _share(self, file: Callable[[int], int], blob_bytes: int, capacity: int) -> None:
        self.blob_bytes, self.capacity = blob_bytes, capacity
        try:
            self.fd = file(self.num_bytes)
            weakref.finalize(self, os.close, self.fd)
            pages = mmap.mmap(self.fd, self.num_bytes, flags=mmap.MAP_SHARED)
        except (OSError, OverflowError, ValueError) as error:
            raise Exhausted(
                f"no room in main memory for a host tier of {capacity} expert blobs of {blob_bytes} bytes ({error}); "
                "give it less host memory",
                reason="MEMORY_EXHAUSTED",
            ) from error
        if self.num_bytes >= HUGE_FROM_BYTES:
            with contextlib.suppress(OSError):  # kernels without huge pages for shared memory
                pages.madvise(mmap.MADV_HUGEPAGE)
        self._data = torch.frombuffer(pages, dtype=torch.uint8).view(capacity, blob_bytes)
        self._locked = False

    @property
    def num_bytes(self) -> int:
        return self.capacity * self.blob_bytes

    def blob(self, place: int) -> torch.Tensor:
        """uint8[blob_bytes] at a place."""
        return self._data[place]

    def lock_pages(self) -> None:
        """Register the memory with CUDA, in the process that owns the slots: copies then run beside its steps.

        Takes all pages at once. Raises Exhausted.
        """
        if self._locked:
            return
        cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        code = int(cudart.cudaHostRegister(self._data.data_ptr(), self.num_bytes, 0))
        if code:
            raise Exhausted(
                f"the {self.num_bytes} bytes of the host tier cannot be locked for the device (CUDA error {code}); "
                "give it less host memory, or raise the limit of locked memory (ulimit -l)",
                reason="MEMORY_EXHAUSTED",
            )
        self._locked = True

    def unlock_pages(self) -> None:
        """Undo ``lock_pages``; any number of times. No copy may be under way."""
        if self._locked:
            self._locked = False
            torch.cuda.cudart().cudaHostUnregister(self._data.data_ptr())  # type: ignore[no-untyped-call]


def _new_file(num_bytes: int) -> int:
    fd = os.memfd_create("premoe-host-tier")
    try:
        os.ftruncate(fd, num_bytes)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _attach(file: Any, blob_bytes: int, capacity: int) -> HostArena:
    return HostArena.attach(file.detach(), blob_bytes, capacity)
