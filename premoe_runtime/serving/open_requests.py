"""Requests that have not ended: what the engine has of them, what their owners were told, and their one way out."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TypeVar

from premoe_runtime.engines.base import Cancel, Engine, StepReport, Submit, TokenEvent
from premoe_runtime.formats.errors import Conflict
from premoe_runtime.serving.groups import Group
from premoe_runtime.serving.reports import SwapReport
from premoe_runtime.serving.requests import OpenRequest
from premoe_runtime.serving.turns import kv_key

T = TypeVar("T")


class OpenRequests:
    """All unfinished requests by id. ``last``: the engine's newest report. Owned by the serving loop."""

    def __init__(self, engine: Engine, weights_id: str) -> None:
        self._engine, self._weights_id = engine, weights_id
        self._open: dict[str, OpenRequest] = {}
        self._failed_receivers: list[OpenRequest] = []
        self.last = StepReport()

    def __len__(self) -> int:
        return len(self._open)

    def add(self, group: Group, request: OpenRequest) -> None:
        """Raises Conflict for an id in use."""
        if request.id in self._open:
            raise Conflict(f"request id {request.id!r} is in use", reason="REQUEST_ID_IN_USE")
        self._open[request.id] = group.requests[request.id] = request

    def get(self, request_id: str) -> OpenRequest | None:
        return self._open.get(request_id)

    def submit(self, group: Group, request: OpenRequest) -> None:
        """Give it to the engine; its group runs."""
        asked = request.asked
        assert group.row is not None, "a running pattern has a mask row"
        request.submitted, request.compiling = True, bool(asked.grammar)
        kv = kv_key(group.key, asked.active, self._weights_id, asked.salt)
        self._engine.post(
            Submit(
                request_id=asked.request_id,
                token_ids=asked.token_ids,
                pattern_row=group.row,
                active=asked.active,
                sampling=asked.sampling,
                kv_key=kv,
                grammar=asked.grammar,
                priority=asked.priority,
            )
        )

    def announce(self, requests: Collection[OpenRequest], report: SwapReport) -> SwapReport:
        """Tell each what its swap moved, the first one all of it; returns what is left to be told to others."""
        for request in requests:
            if not request.started and not request.ended:
                request.started = True
                self._tell(request, request.on_started, report)
            report = report.shared()
        return report

    def deliver(self, request: OpenRequest, event: TokenEvent) -> None:
        self._tell(request, request.on_event, event)

    def free(self, request: OpenRequest, group: Group | None, event: TokenEvent) -> None:
        """The one way out of a request: nothing of it is left but its last event."""
        del self._open[request.id]
        if group is not None:
            del group.requests[request.id]
        request.end(event)

    def free_all(self, event: TokenEvent) -> None:
        for request in list(self._open.values()):
            self.free(request, None, event)

    def fail(self, group: Group, error: Exception) -> None:
        """All of a group: those that the engine has end there first, and then with this error."""
        requests = list(group.requests.values())
        for request in requests:
            request.error = error
        self._engine.post(Cancel(group.submitted()))
        for request in requests:
            if not request.submitted:
                self.free(request, group, TokenEvent(error=error))

    def take_failed_receivers(self) -> list[OpenRequest]:
        """Requests whose receiver raised: nobody wants them any more."""
        failed, self._failed_receivers = self._failed_receivers, []
        return [request for request in failed if not request.ended]

    def _tell(self, request: OpenRequest, call: Callable[[T], None], news: T) -> None:
        if not request.tell(call, news):
            self._failed_receivers.append(request)
