"""Moving blobs: source -> host tier (digest checked) -> slots, at a bounded pace, until done or cancelled."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from premoe_runtime.formats.errors import CorruptData, Unavailable
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.residency.bank import ExpertBank, Ticket
from premoe_runtime.residency.host_tier import bytes_of, digest_of
from premoe_runtime.residency.source import ExpertSource

_NAP_SECONDS = 0.01


class Transfer:
    """One transfer of one swap. Not shared between threads, but a source may deliver from threads of its own."""

    def __init__(
        self,
        bank: ExpertBank,
        ticket: Ticket,
        source: ExpertSource,
        cancelled: Callable[[], bool],
        bytes_per_second: float | None = None,
        threads: int = 1,
    ) -> None:
        self._bank, self._ticket, self._source = bank, ticket, source
        self._cancelled = cancelled
        self._rate = bytes_per_second
        self._threads = threads
        self._started = time.monotonic()
        self._moved = 0
        self._fault: BaseException | None = None
        self._loads = {load.expert: load for load in ticket.plan.loads}
        self._in_flight: list[ExpertId] = []
        self._landed: set[ExpertId] = set()
        self._stream = _copy_stream(bank.device)
        if self._stream is not None and ticket.retired_at is not None:
            # Steps queued before the retire may still read the victims' slots.
            self._stream.wait_event(ticket.retired_at)

    def run(self) -> bool:
        """Copy every load of the plan into its slot. True when all are there, False when cancelled."""
        try:
            self._save_pinned_victims()
            if not self._copy_all():
                return False
        finally:
            self._drain()
        self._ticket.copied = True
        return True

    def fetch(self, experts: Sequence[ExpertId]) -> None:
        """Read blobs into the host tier, check them, and copy those the plan loads to their slots.

        Stops early when cancelled. Raises the first error: the source's, CorruptData, Exhausted, or Unavailable when
        the source returned without delivering all.
        """
        if not experts:
            return
        host, converts = self._bank.host, self._bank.layout.converts
        rooms: dict[ExpertId, torch.Tensor] = {}
        targets: dict[ExpertId, torch.Tensor] = {}
        delivered: set[ExpertId] = set()

        def into(expert: ExpertId) -> memoryview:
            if expert not in targets:
                rooms[expert] = host.reserve(expert)
                stored_bytes = self._bank.layout.stored.blob_bytes
                targets[expert] = torch.empty(stored_bytes, dtype=torch.uint8) if converts else rooms[expert]
            return bytes_of(targets[expert])

        def done(expert: ExpertId) -> None:
            if self._fault is not None:
                return
            try:
                self._check_in(expert, targets[expert], rooms[expert])
                delivered.add(expert)
            except BaseException as error:
                # A source may deliver from a thread of its own, where this error would be lost.
                self._fault = error

        try:
            self._source.fetch(experts, into, done, lambda: self._fault is not None or self._cancelled())
        finally:
            for expert in experts:
                host.discard(expert)
        if self._fault is not None:
            raise self._fault
        if len(delivered) < len(experts) and not self._cancelled():
            lost = next(expert for expert in experts if expert not in delivered)
            raise Unavailable(f"the source did not deliver {lost}; try again", reason="BLOB_NOT_DELIVERED")

    def _copy_all(self) -> bool:
        if not self._copy_held():
            return False
        left = [expert for expert in self._loads if expert not in self._landed]
        while left:
            # A full host tier must still let one blob through at a time; reserving it says what is wrong.
            batch = left[: max(1, self._bank.host.available)]
            self.fetch(batch)
            if self._cancelled():
                return False
            left = left[len(batch) :]
            self._drain()
        return True

    def _copy_held(self) -> bool:
        """Copy what the host tier holds already; False when cancelled."""

        def one(expert: ExpertId) -> bool:
            if self._cancelled():
                return False
            blob = self._bank.host.hold(expert)
            if blob is not None:
                self._to_slot(expert, blob)
            return True

        # A device has its own copy engine, and a pace is kept by one thread.
        if self._threads == 1 or self._stream is not None or self._rate:
            return all(one(expert) for expert in self._loads)
        with ThreadPoolExecutor(self._threads, "premoe-copy") as pool:
            return all(list(pool.map(one, self._loads)))

    def _check_in(self, expert: ExpertId, blob: torch.Tensor, room: torch.Tensor) -> None:
        digest = digest_of(blob)
        if digest != self._bank.manifest.digest(expert):
            raise CorruptData(f"{expert} arrived with a wrong digest; its slot stays empty", reason="BLOB_DIGEST")
        if self._bank.layout.converts:
            self._bank.layout.convert(blob, room)
            digest = digest_of(room)
            self._bank.note_digest(expert, digest)
        self._bank.host.commit(expert, digest)
        if expert in self._loads:
            self._to_slot(expert, room)
        else:
            self._pace()
            self._bank.host.let_go(expert)

    def _to_slot(self, expert: ExpertId, blob: torch.Tensor) -> None:
        """Copy a held blob into its slot and let it go (on CUDA: once the copy stream is through)."""
        self._in_flight.append(expert)
        self._pace()
        load = self._loads[expert]
        slot = self._bank.arenas[load.layer].slot(load.slot)
        if self._stream is None:
            # One plain memory copy on this thread, without the interpreter lock: torch's own copy would take the OpenMP
            # threads that decoding needs.
            np.copyto(slot.numpy(), blob.numpy())
            self._in_flight.remove(expert)
            self._bank.host.let_go(expert)
        else:
            with torch.cuda.stream(self._stream):
                slot.copy_(blob, non_blocking=True)
        self._landed.add(expert)

    def _drain(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()
        while self._in_flight:
            self._bank.host.let_go(self._in_flight.pop())

    def _save_pinned_victims(self) -> None:
        """Paused sequences want their blobs in host memory: take them from the slots before they are overwritten."""
        host = self._bank.host
        for load in self._ticket.plan.loads:
            victim = load.evicts
            if victim is None or not host.is_pinned(victim) or victim in host or not host.available:
                continue
            room = host.reserve(victim)
            slot = self._bank.arenas[load.layer].slot(load.slot)
            if self._stream is None:
                room.copy_(slot)
            else:
                with torch.cuda.stream(self._stream):
                    room.copy_(slot, non_blocking=True)
                self._stream.synchronize()
            host.commit(victim, self._bank.digest(victim))
            host.let_go(victim)

    def _pace(self) -> None:
        """Sleep as long as the blobs moved so far are ahead of the pace."""
        self._moved += self._bank.blob_bytes
        if not self._rate:
            return
        due = self._started + self._moved / self._rate
        while (left := due - time.monotonic()) > 0 and not self._cancelled():
            time.sleep(min(left, _NAP_SECONDS))


def _copy_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A stream beside the one that computes; None where copies are plain memory copies."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
