"""Copying blobs between host memory and slots, beside the engine and while it decodes."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch

from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.residency.fetch import never
from premoe_runtime.residency.host_arena import HostArena
from premoe_runtime.residency.slot_store import SlotStore

_NAP_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class BlobCopy:
    """One blob: ``place`` in host memory, ``slot`` of the expert's layer, and the blake3 its bytes have."""

    expert: ExpertId
    place: int
    slot: int
    digest: str


@dataclass(frozen=True, slots=True)
class Copy:
    """First ``saves`` from slots to host memory, then ``loads`` from there into slots that no step can reach.

    ``threads`` > 1 only pays, and only is fair, where nothing decodes meanwhile. ``bytes_per_second`` bounds the pace.
    """

    loads: tuple[BlobCopy, ...]
    saves: tuple[BlobCopy, ...] = ()
    threads: int = 1
    bytes_per_second: float | None = None


@dataclass(frozen=True, slots=True)
class Copied:
    """What became of a ``Copy``: ``written`` slots are whole, ``torn`` ones were begun, the others not touched.

    ``saved``: blobs that are in host memory now, with the digests of their bytes.
    """

    written: frozenset[ExpertId]
    torn: frozenset[ExpertId] = frozenset()
    saved: Mapping[ExpertId, str] = field(default_factory=dict)
    start_ns: int = 0
    end_ns: int = 0
    error: Exception | None = None


def merged(parts: Sequence[Copied]) -> Copied:
    """What became of a copy of which every rank carried out what lies in its slots. An expert is on one rank only."""
    return Copied(
        written=frozenset[ExpertId]().union(*(part.written for part in parts)),
        torn=frozenset[ExpertId]().union(*(part.torn for part in parts)),
        saved={expert: digest for part in parts for expert, digest in part.saved.items()},
        start_ns=min(part.start_ns for part in parts),
        end_ns=max(part.end_ns for part in parts),
        error=next((part.error for part in parts if part.error is not None), None),
    )


class Copier:
    """Carries out copies, one at a time. Never raises: what went wrong is in the result."""

    def __init__(self, store: SlotStore, arena: HostArena) -> None:
        self._store = store
        self._arena = arena
        self._blob_bytes = store.shape.blob_bytes
        self._places = arena.blob(0).data_ptr()
        self._slots = [held.data.data_ptr() for held in store.arenas]
        self._stream = torch.cuda.Stream(store.device) if store.device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def run(
        self, copy: Copy, cancelled: Callable[[], bool] = never, *, after: torch.cuda.Event | None = None
    ) -> Copied:
        """``after``: CUDA event of the last step that could read the slots."""
        started, begun = time.time_ns(), time.monotonic()
        touched: set[ExpertId] = set()
        written: set[ExpertId] = set()
        saved: dict[ExpertId, str] = {}
        error: Exception | None = None

        def one(blob: BlobCopy) -> None:
            pace(copy, len(touched), self._blob_bytes, begun, cancelled)
            if cancelled():
                return
            touched.add(blob.expert)
            self._move(blob, into_slot=True)
            self._store.note_digest(blob.expert, blob.digest)
            written.add(blob.expert)

        try:
            if self._stream is not None and after is not None:
                self._stream.wait_event(after)
            for blob in copy.saves:
                self._move(blob, into_slot=False)
                saved[blob.expert] = self._store.digest(blob.expert)
            # A device has its own copy engine, and a pace is kept by one thread.
            if copy.threads == 1 or self._stream is not None or copy.bytes_per_second:
                for blob in copy.loads:
                    one(blob)
            else:
                with ThreadPoolExecutor(copy.threads, "premoe-copy") as pool:
                    list(pool.map(one, copy.loads))
            self._drain()
        except Exception as failure:
            # Nothing is known of what a failed device copied.
            error, saved = failure, {}
            if self._stream is not None:
                written = set()
        return Copied(frozenset(written), frozenset(touched - written), saved, started, time.time_ns(), error)

    def _move(self, blob: BlobCopy, *, into_slot: bool) -> None:
        layer = blob.expert.layer
        if not (0 <= blob.place < self._arena.capacity and 0 <= blob.slot < self._store.slots[layer]):
            raise IndexError(f"{blob.expert}: there is no slot {blob.slot} or no place {blob.place}")
        if self._stream is None:
            # One plain memory copy on this thread, without the interpreter lock: torch's own copy would take the OpenMP
            # threads that decoding needs, and views of tensors cost a tenth of the time of a small blob.
            slot = self._slots[layer] + blob.slot * self._blob_bytes
            place = self._places + blob.place * self._blob_bytes
            ctypes.memmove(*((slot, place) if into_slot else (place, slot)), self._blob_bytes)
            return
        on_device, on_host = self._store.slot(layer, blob.slot), self._arena.blob(blob.place)
        with torch.cuda.stream(self._stream):
            if into_slot:
                on_device.copy_(on_host, non_blocking=True)
            else:
                on_host.copy_(on_device, non_blocking=True)

    def _drain(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()


def pace(copy: Copy, done: int, blob_bytes: int, begun: float, cancelled: Callable[[], bool]) -> None:
    """Sleep as long as the ``done`` blobs copied since ``begun`` are ahead of the copy's pace."""
    if not copy.bytes_per_second:
        return
    due = begun + (done + 1) * blob_bytes / copy.bytes_per_second
    while (left := due - time.monotonic()) > 0 and not cancelled():
        time.sleep(min(left, _NAP_SECONDS))
