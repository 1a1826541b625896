"""Fetching blobs: source -> places in host memory, each checked against its digest before anyone may use it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from premoe_runtime.formats.errors import CorruptData, Unavailable
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.residency.host_arena import HostArena
from premoe_runtime.residency.host_tier import bytes_of, digest_of
from premoe_runtime.residency.slot_shape import SlotShape
from premoe_runtime.residency.source import ExpertSource


def never() -> bool:
    return False


def always() -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Where blobs come from and how they are kept. Safe to use from several threads, each with places of its own."""

    source: ExpertSource
    shape: SlotShape
    arena: HostArena

    def fetch(
        self,
        places: Mapping[ExpertId, int],
        delivered: Callable[[ExpertId, str], None],
        cancelled: Callable[[], bool] = never,
        urgent: Callable[[], bool] = always,
    ) -> None:
        """Read each blob into its place and call ``delivered(expert, digest of the bytes there)``, from any thread.

        Stops early when cancelled; ``urgent`` as the source has it. Raises the first error: the source's, CorruptData
        (digest), or Unavailable when the source returned without delivering all.
        """
        targets: dict[ExpertId, torch.Tensor] = {}
        arrived: set[ExpertId] = set()
        faults: list[BaseException] = []

        def into(expert: ExpertId) -> memoryview:
            if expert not in targets:
                room = self.arena.blob(places[expert])
                stored = self.shape.layout.stored.blob_bytes
                targets[expert] = torch.empty(stored, dtype=torch.uint8) if self.shape.layout.converts else room
            return bytes_of(targets[expert])

        def done(expert: ExpertId, checked: bool) -> None:
            if faults:
                return
            try:
                digest = self._check_in(expert, targets.pop(expert), self.arena.blob(places[expert]), checked)
                arrived.add(expert)
                delivered(expert, digest)
            except BaseException as error:
                # A source may deliver from a thread of its own, where this error would be lost.
                faults.append(error)

        if not places:
            return
        self.source.fetch(list(places), into, done, lambda: bool(faults) or cancelled(), urgent)
        if faults:
            raise faults[0]
        if len(arrived) < len(places) and not cancelled():
            lost = next(expert for expert in places if expert not in arrived)
            raise Unavailable(f"the source did not deliver {lost}; try again", reason="BLOB_NOT_DELIVERED")

    def _check_in(self, expert: ExpertId, blob: torch.Tensor, room: torch.Tensor, checked: bool) -> str:
        digest = self.shape.manifest.digest(expert)
        if not checked and digest_of(blob) != digest:
            raise CorruptData(
                f"{expert} arrived with a wrong digest and was not used; look for damage with `premoe pack verify`",
                reason="BLOB_DIGEST",
            )
        if not self.shape.layout.converts:
            return digest
        self.shape.layout.convert(blob, room)
        return digest_of(room)
