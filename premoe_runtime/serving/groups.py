"""The patterns that are in use or rest, their states, their mask rows and who may take whose."""

from __future__ import annotations

import itertools
import logging

from premoe_runtime.formats.errors import Exhausted
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.residency.bank import ExpertBank
from premoe_runtime.serving.requests import Entry, Group, KeptPattern, State

logger = logging.getLogger(__name__)


class GroupTable:
    """All groups by pattern key. Not thread-safe: the residency manager calls it with its lock held.

    ``victims``: experts that the swap under way takes out; who needs one of them is not ready, whatever the tables say.
    """

    def __init__(self, bank: ExpertBank) -> None:
        self._bank = bank
        self._groups: dict[str, Group] = {}
        self._tickets = itertools.count(1)
        self.victims: frozenset[ExpertId] = frozenset()

    def in_state(self, state: State) -> list[Group]:
        return [group for group in self._groups.values() if group.state is state]

    def get(self, key: str) -> Group:
        return self._groups[key]

    def groups(self) -> list[Group]:
        return list(self._groups.values())

    def entries(self) -> list[Entry]:
        """Unfinished requests of all patterns."""
        return [entry for group in self._groups.values() for entry in group.entries.values()]

    def find(self, pattern: KeptPattern) -> Group:
        """The pattern's group, new if need be. Raises Exhausted when every mask row belongs to a pattern in use."""
        group = Group(pattern)
        group = self._groups.get(group.key, group)
        if group.state is not State.IDLE:
            return group
        busy = len(self._groups) - len(self.in_state(State.IDLE))
        if busy >= self._bank.max_rows:
            raise Exhausted(
                f"{busy} patterns are in use at once, as many as the mask table has rows; try again later",
                reason="PATTERNS_EXHAUSTED",
            )
        self._groups[group.key] = group
        return group

    def take_row(self, group: Group) -> int:
        """The group's mask row, or a free one, or the one of the pattern that rests longest."""
        if group.row is not None:
            return group.row
        used = {other.row for other in self._groups.values()}
        row = next((index for index in range(self._bank.max_rows) if index not in used), None)
        if row is None:
            resting = [other for other in self.in_state(State.IDLE) if other.row is not None]
            if not resting:
                raise Exhausted("every mask row is in use; try again later", reason="PATTERNS_EXHAUSTED")
            oldest = min(resting, key=lambda other: other.since)
            del self._groups[oldest.key]
            row = oldest.row
        assert row is not None, "a resting pattern was chosen because it has a row"
        group.row, group.row_written = row, False
        return row

    def ready(self, group: Group) -> bool:
        """Whether a resting group could run as it is: its row is written and all its experts are resident."""
        return (
            group.row is not None
            and group.row_written
            and not group.experts & self.victims
            and self._bank.row_ready(group.row)
        )

    def run(self, group: Group) -> None:
        """From here on its experts are pinned."""
        group.state = State.RUNNING
        group.since = next(self._tickets)
        self._unpin_host(group)

    def wait(self, group: Group) -> None:
        """To the end of the queue."""
        group.state = State.WAITING
        group.since = next(self._tickets)

    def keep_in_host(self, group: Group) -> None:
        """Pin the blobs of a group that is paused, if there is room."""
        if group.host_pinned:
            return
        try:
            self._bank.host.pin(group.experts)
            group.host_pinned = True
        except Exhausted:
            logger.debug("host tier too small to keep pattern %s; it will be fetched again", group.pattern.id)

    def pinned(self) -> frozenset[ExpertId]:
        """Experts of running groups: no swap may take them."""
        return frozenset().union(*(group.experts for group in self.in_state(State.RUNNING)))

    def give_up(self, group: Group) -> None:
        """Its swap came to nothing: a row that was never written is free again."""
        self.victims = frozenset()
        group.state = State.WAITING
        if not group.row_written:
            group.row = None

    def settle(self, group: Group) -> None:
        """A group that nobody wants any more rests; its experts are no longer pinned."""
        if group.wanted or group.state is State.LOADING:
            return
        self._unpin_host(group)
        group.state = State.IDLE
        if not group.row_written and self._groups.get(group.key) is group:
            del self._groups[group.key]

    def _unpin_host(self, group: Group) -> None:
        if group.host_pinned:
            group.host_pinned = False
            self._bank.host.unpin(group.experts)
