"""Requests that have not ended: what the engine has of them, what their owners were told, and their one way out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from functools import partial

from premoe_runtime.engines.base import Cancel, Engine, SequenceRequest, StepReport, Submit, TokenEvent
from premoe_runtime.formats.errors import Conflict
from premoe_runtime.serving.groups import Group
from premoe_runtime.serving.reports import SwapReport
from premoe_runtime.serving.requests import Entry
from premoe_runtime.serving.turns import kv_key

logger = logging.getLogger(__name__)


class Entries:
    """All unfinished requests by id. ``last``: the engine's newest report. Owned by the serving loop."""

    def __init__(self, engine: Engine, weights_id: str) -> None:
        self._engine, self._weights_id = engine, weights_id
        self._entries: dict[str, Entry] = {}
        self._failed_receivers: list[Entry] = []
        self.last = StepReport()

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, group: Group, entry: Entry) -> None:
        """Raises Conflict for an id in use."""
        if entry.id in self._entries:
            raise Conflict(f"request id {entry.id!r} is in use", reason="REQUEST_ID_IN_USE")
        self._entries[entry.id] = group.entries[entry.id] = entry

    def get(self, request_id: str) -> Entry | None:
        return self._entries.get(request_id)

    def submit(self, group: Group, entry: Entry) -> None:
        """Give it to the engine; its group runs."""
        asked = entry.request
        assert group.row is not None, "a running pattern has a mask row"
        entry.submitted = True
        request = SequenceRequest(
            request_id=entry.id,
            token_ids=asked.token_ids,
            pattern_row=group.row,
            active=asked.active,
            sampling=asked.sampling,
            kv_key=kv_key(group.key, asked.active, self._weights_id, asked.salt),
        )
        self._engine.post(Submit(request))

    def announce(self, entries: Collection[Entry], report: SwapReport) -> SwapReport:
        """Tell each what its swap moved, the first one all of it; returns what is left to be told to others."""
        for entry in entries:
            if not entry.started and not entry.ended:
                entry.started = True
                self._tell(entry, partial(entry.on_started, report))
            report = report.shared()
        return report

    def deliver(self, entry: Entry, event: TokenEvent) -> None:
        self._tell(entry, partial(entry.on_event, event))

    def refuse(self, entry: Entry, error: Exception) -> None:
        """It never came in; the error is its only event."""
        entry.ended = True
        self.deliver(entry, TokenEvent((), "", error=error))

    def free(self, entry: Entry, group: Group | None, event: TokenEvent) -> None:
        """The one way out of a request: nothing of it is left but its last event."""
        entry.ended = True
        del self._entries[entry.id]
        if group is not None:
            del group.entries[entry.id]
        self.deliver(entry, event)

    def free_all(self, event: TokenEvent) -> None:
        for entry in list(self._entries.values()):
            self.free(entry, None, event)

    def fail(self, group: Group, error: Exception) -> None:
        """All of a group: those that the engine has end there first, and then with this error."""
        entries = list(group.entries.values())
        for entry in entries:
            entry.error = error
        self._engine.post(Cancel(group.submitted()))
        for entry in entries:
            if not entry.submitted:
                self.free(entry, group, TokenEvent((), "", error=error))

    def take_failed_receivers(self) -> list[Entry]:
        """Requests whose receiver raised: nobody wants them any more."""
        failed, self._failed_receivers = self._failed_receivers, []
        return [entry for entry in failed if not entry.ended]

    def _tell(self, entry: Entry, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:
            logger.exception("the receiver of request %s failed; cancelling it", entry.id)
            self._failed_receivers.append(entry)
