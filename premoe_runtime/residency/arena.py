"""Slot arenas: one allocation per MoE layer whose address never changes."""

from __future__ import annotations

import mmap

import torch

from premoe_runtime.formats.errors import Exhausted
from premoe_runtime.formats.manifest import BlobLayout
from premoe_runtime.residency.blob_fields import field_view

HUGE_FROM_BYTES = 32 << 20
"""Below this a huge page could hold more memory than the blobs that were written to it."""


def zeroed(blobs: int, blob_bytes: int, device: torch.device) -> torch.Tensor:
    """uint8[blobs, blob_bytes] of zeros; in main memory pages are taken only when written, huge ones where allowed.

    Raises Exhausted when the device, or the address space, has no such room.
    """
    num_bytes = blobs * blob_bytes
    try:
        if device.type == "cpu" and num_bytes >= HUGE_FROM_BYTES:
            # Private, as only this process may write here; shared memory seldom gets huge pages.
            pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            pages.madvise(mmap.MADV_HUGEPAGE)
            return torch.frombuffer(pages, dtype=torch.uint8).view(blobs, blob_bytes)
        return torch.zeros((blobs, blob_bytes), dtype=torch.uint8, device=device)
    except (torch.OutOfMemoryError, RuntimeError, OSError) as error:
        raise Exhausted(
            f"no room for {blobs} expert blobs of {blob_bytes} bytes on {device}; give fewer slots",
            reason="MEMORY_EXHAUSTED",
        ) from error


class SlotArena:
    """Room for ``slots`` blobs of one layer on the device.

    ``data``: uint8[slots, blob_bytes]. Zeroed at the start, so that memory on the CPU is only taken by slots that were
    written, and no kernel ever reads a NaN from a slot that never held an expert. ``within``: an arena whose first
    slots these are, for layers that are never resident together.
    """

    def __init__(
        self, slots: int, layout: BlobLayout, device: torch.device, *, within: SlotArena | None = None
    ) -> None:
        self.layout = layout
        self.data: torch.Tensor = zeroed(slots, layout.blob_bytes, device) if within is None else within.data[:slots]

    @property
    def num_bytes(self) -> int:
        return self.data.numel()

    def field(self, name: str) -> torch.Tensor:
        """dtype[slots, *shape]: a view with a stride of one blob. Raises InvalidInput for an unknown field."""
        return field_view(self.data, self.layout, name)

    def slot(self, index: int) -> torch.Tensor:
        """uint8[blob_bytes] of one slot, contiguous."""
        return self.data[index]
