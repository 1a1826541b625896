"""The patterns that are in use or rest: their states, their mask rows, and who may take whose."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from concurrent.futures import Future
from enum import Enum

from premoe_runtime.formats.errors import Exhausted
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.serving.fetches import Need
from premoe_runtime.serving.reports import SwapReport
from premoe_runtime.serving.requests import KeptPattern, OpenRequest


class State(Enum):
    """Where a pattern stands."""

    RESTING = "resting"
    """No unfinished request; its row and experts may still be there."""
    WAITING = "waiting"
    """Requests wait, or are paused; what its experts lack is fetched into host memory."""
    LOADING = "loading"
    """Its turn has come, and blobs are copied into slots."""
    RUNNING = "running"
    """Published; its experts are pinned."""


class Step(Enum):
    """What may happen to a pattern."""

    ASKED = "asked"
    FOUND = "found"
    STARTED = "started"
    PUBLISHED = "published"
    PAUSED = "paused"
    FAILED = "failed"
    LEFT = "left"


TRANSITIONS: Mapping[tuple[State, Step], State] = {
    (State.RESTING, Step.ASKED): State.WAITING,
    (State.RESTING, Step.FOUND): State.RUNNING,
    (State.WAITING, Step.STARTED): State.LOADING,
    (State.WAITING, Step.FAILED): State.WAITING,
    (State.WAITING, Step.LEFT): State.RESTING,
    (State.LOADING, Step.PUBLISHED): State.RUNNING,
    (State.LOADING, Step.FAILED): State.WAITING,
    (State.RUNNING, Step.PAUSED): State.WAITING,
    (State.RUNNING, Step.LEFT): State.RESTING,
}
"""Everything that can happen to a group; what is not here never does."""


class Group:
    """All unfinished requests under one pattern, and what they wait for. The loop alone changes it."""

    def __init__(self, pattern: KeptPattern) -> None:
        self.pattern = pattern
        self.state = State.RESTING
        self.since = 0
        """Ticket drawn at its last step; lower is longer ago."""
        self.row: int | None = None
        self.row_written = False
        self.requests: dict[str, OpenRequest] = {}
        self.loads: list[Future[SwapReport]] = []
        self.need = Need(self.pattern.experts)

    @property
    def key(self) -> str:
        return self.pattern.key

    @property
    def experts(self) -> frozenset[ExpertId]:
        return self.pattern.experts

    @property
    def priority(self) -> int:
        """The smallest of those who wait for it."""
        waiting = [request.asked.priority for request in self.requests.values() if request.error is None]
        return min(waiting, default=0) if not self.loads else 0

    @property
    def wanted(self) -> bool:
        """Whether anybody still waits for it."""
        return bool(self.loads) or any(request.error is None for request in self.requests.values())

    @property
    def idle(self) -> bool:
        """Whether no step can run for it: all of its requests wait for their grammars."""
        return not self.loads and bool(self.requests) and all(r.compiling for r in self.requests.values())

    def names(self) -> frozenset[str]:
        """Ids under which the pattern was asked for."""
        return frozenset({self.pattern.id} | {request.pattern.id for request in self.requests.values()})

    def submitted(self) -> frozenset[str]:
        """Ids of its requests that the engine has."""
        return frozenset(request.id for request in self.requests.values() if request.submitted)


class GroupTable:
    """All groups by pattern key. ``max_rows``: rows of the mask table."""

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._groups: dict[str, Group] = {}
        self._by_state: dict[State, dict[str, Group]] = {state: {} for state in State}
        self._rows: dict[int, Group] = {}
        self._tickets = itertools.count(1)

    def in_state(self, state: State) -> list[Group]:
        """Longest in that state first."""
        return list(self._by_state[state].values())

    def get(self, key: str) -> Group:
        return self._groups[key]

    def holder(self, request: OpenRequest) -> Group | None:
        """The group that an unfinished request is in, unless it has failed."""
        group = self._groups.get(request.pattern.key)
        return group if group is not None and request.id in group.requests else None

    def groups(self) -> list[Group]:
        return list(self._groups.values())

    def find(self, pattern: KeptPattern) -> Group:
        """The pattern's group, new if need be. Raises Exhausted when every mask row belongs to a pattern in use."""
        group = self._groups.get(pattern.key)
        if group is not None and group.state is not State.RESTING:
            return group
        in_use = [group for group in self._groups.values() if group.state is not State.RESTING]
        busy = len(in_use)
        if pattern.one_request and sum(group.pattern.one_request for group in in_use) >= self._max_rows // 2:
            raise Exhausted(
                "too many different denials are in use at once; try again later", reason="PATTERNS_EXHAUSTED"
            )
        if busy >= self._max_rows:
            raise Exhausted(
                f"{busy} patterns are in use at once, as many as the mask table has rows; try again later",
                reason="PATTERNS_EXHAUSTED",
            )
        if group is None:
            group = self._groups[pattern.key] = Group(pattern)
            self._by_state[State.RESTING][group.key] = group
        return group

    def step(self, group: Group, step: Step) -> None:
        """Let it happen, and draw a ticket: the group is now the youngest in its state."""
        del self._by_state[group.state][group.key]
        group.state = TRANSITIONS[group.state, step]
        group.since = next(self._tickets)
        self._by_state[group.state][group.key] = group
        if group.state is State.RESTING and not group.row_written:
            self._forget(group)

    def take_row(self, group: Group) -> int:
        """The group's mask row, or a free one, or the one of the pattern that rests longest; not yet written."""
        if group.row is None:
            row = next((index for index in range(self._max_rows) if index not in self._rows), None)
            if row is None:
                # ``find`` admits no more groups than rows, so one of those that have a row rests.
                oldest = next(other for other in self.in_state(State.RESTING) if other.row is not None)
                assert oldest.row is not None, "chosen because it has one"
                row = oldest.row
                self._forget(oldest)
            group.row, group.row_written = row, False
            self._rows[row] = group
        return group.row

    def pinned(self) -> frozenset[ExpertId]:
        """Experts of running groups: no swap may take them."""
        return frozenset().union(*(group.experts for group in self.in_state(State.RUNNING)))

    def _forget(self, group: Group) -> None:
        if group.row is not None:
            del self._rows[group.row]
            group.row = None
        if self._groups.get(group.key) is group:
            del self._groups[group.key]
            self._by_state[group.state].pop(group.key, None)
