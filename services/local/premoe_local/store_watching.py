"""What a watched expert store tells: documents for programs, lines and a bar for people."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import click
from premoe.experts.v1 import experts_pb2 as pb
from premoe_dataplane.wire import experts_of_wire, tier_of_wire

from premoe_local.console import Progress, human_bytes, progress
from premoe_runtime.formats.ids import ExpertId

_NAMED = 8
_PLACES = {"node": "the store's own cache", "redis": "Redis", "object": "object storage"}


def document(event: pb.WatchStoreResponse, experts: int) -> dict[str, Any] | None:
    """An event of a pack of so many experts; None for one of a later store."""
    kind = event.WhichOneof("event")
    if kind == "progress":
        now = event.progress
        return {
            "event": kind,
            "experts": experts,
            "present": now.present,
            "under_way": now.under_way,
            "arrived_bytes": now.arrived_bytes,
            "wanted_bytes": now.wanted_bytes,
        }
    if kind == "blobs_invalid":
        wrong = [{"layer": layer, "expert": expert} for layer, expert in experts_of_wire(event.blobs_invalid.experts)]
        return {"event": kind, "experts": wrong, "tier": tier_of_wire(event.blobs_invalid.tier)}
    return {"event": kind, "message": event.pack_gone.message} if kind == "pack_gone" else None


class Screen:
    """Lines on stdout, and on a terminal a bar while something arrives. A context manager, which takes the bar away."""

    def __init__(self, experts: int, blob_bytes: int) -> None:
        self._experts, self._blob_bytes = experts, blob_bytes
        self._showing = ExitStack()
        self._bar: Progress | None = None
        self._before = 0
        self._told = -1

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *error: object) -> None:
        self._showing.close()

    def tell(self, event: pb.WatchStoreResponse) -> None:
        """Show one event; one of a later store is passed over."""
        kind = event.WhichOneof("event")
        if kind == "progress":
            self._progress(event.progress)
        elif kind == "blobs_invalid":
            wrong = event.blobs_invalid
            tier = tier_of_wire(wrong.tier)
            where = _PLACES.get(tier, "a place that is not known here")
            self._line(f"wrong copies in {where}: {_named(experts_of_wire(wrong.experts))}")
        elif kind == "pack_gone":
            self._line(f"pack gone: {event.pack_gone.message}")

    def _progress(self, now: pb.StoreProgress) -> None:
        if now.under_way == 0 or self._told < 0:
            if now.present != self._told:
                arriving = f"; {now.under_way} on their way" if now.under_way else ""
                held = human_bytes(now.present * self._blob_bytes)
                self._line(f"{now.present} of {self._experts} experts in the cache ({held}){arriving}")
            self._told = now.present
        if now.under_way == 0:
            self._hide()
            return
        if self._bar is None:
            self._before = now.present
            self._bar = self._showing.enter_context(progress("experts arrive", now.wanted_bytes, unit="bytes"))
        # The store tells of bytes on their way alone: those that have come since count too, or the bar would jump back.
        done = max(0, now.present - self._before) * self._blob_bytes
        self._bar.update(
            completed=done + now.arrived_bytes,
            total=done + now.wanted_bytes,
            description=f"{now.present} of {self._experts} experts, {now.under_way} arrive",
        )

    def _line(self, text: str) -> None:
        self._hide()
        click.echo(text)

    def _hide(self) -> None:
        """Take the bar away: it would swallow lines, and stand still while nothing arrives."""
        self._showing.close()
        self._bar = None


def _named(experts: Sequence[ExpertId]) -> str:
    more = f" and {len(experts) - _NAMED} more" if len(experts) > _NAMED else ""
    return ", ".join(map(str, experts[:_NAMED])) + more
