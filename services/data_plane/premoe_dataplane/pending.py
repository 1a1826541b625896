"""Which pieces of a blob are in place, and which source each of the others asks next. Pure: whoever reads is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from premoe_dataplane.plan import BlobPlan, Source
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.formats.pieces import piece_count

Says = Callable[[Source], bool]


class Ask(NamedTuple):
    """Pieces of a blob, ascending, to be read from source number ``source`` of its plan."""

    pending: Pending
    source: int
    pieces: tuple[int, ...]


def next_source(sources: Sequence[Source], start: int, *, resting: Says, dead: Says) -> int | None:
    """Which source comes next for a piece that may ask those from ``start`` on; None: it has none left.

    ``dead`` ones are never asked. ``resting`` ones are passed over as long as another is left; the last one is asked
    all the same, for it may work again.
    """
    left = [number for number in range(start, len(sources)) if not dead(sources[number])]
    return next((number for number in left if not resting(sources[number])), left[-1] if left else None)


@dataclass(eq=False, slots=True)
class Pending:
    """A blob on its way, over as many plans as it takes. Every piece is in place, asked for, wanted, or given up."""

    expert: ExpertId
    num_bytes: int
    plan: BlobPlan | None = None
    room: memoryview | None = None
    _next: list[int] = field(init=False)
    """Per piece, the first source that it may ask."""
    _came: list[tuple[int, Source] | None] = field(init=False)
    """Per piece that is in place, where it came from; sources of earlier plans count as the first."""
    _asked: set[int] = field(default_factory=set, init=False)
    whole: bool = field(default=False, init=False)
    """Delivered."""

    def __post_init__(self) -> None:
        self._next = [0] * piece_count(self.num_bytes)
        self._came = [None] * piece_count(self.num_bytes)

    @property
    def complete(self) -> bool:
        """Whether every piece is in place."""
        return all(self._came)

    @property
    def sources(self) -> list[Source]:
        """Where the pieces in place came from."""
        return [one[1] for one in self._came if one]

    def renew(self, plan: BlobPlan) -> None:
        """Go on with another plan: what is in place stays, the rest may ask all of its sources."""
        self.plan = plan
        self._next = [0] * len(self._next)
        self._came = [one and (0, one[1]) for one in self._came]

    def ask(self, *, resting: Says, dead: Says) -> Ask | None:
        """What to read next of it: all pieces that the same source comes next for. They count as asked."""
        if self.plan is None or self.whole:
            return None
        chosen: int | None = None
        pieces = []
        for index, start in enumerate(self._next):
            if self._came[index] or index in self._asked:
                continue
            number = next_source(self.plan.sources, start, resting=resting, dead=dead)
            if number is not None and number == (number if chosen is None else chosen):
                chosen = number
                pieces.append(index)
        if chosen is None:
            return None
        self._asked.update(pieces)
        return Ask(self, chosen, tuple(pieces))

    def unask(self, ask: Ask) -> None:
        """It was not begun."""
        self._asked.difference_update(ask.pieces)

    def right(self, index: int, source: int) -> None:
        """A piece is in place."""
        assert self.plan is not None
        self._asked.discard(index)
        self._came[index] = source, self.plan.sources[source]

    def failed(self, index: int, source: int) -> None:
        """A piece did not come, or came wrong: another source is next."""
        self._asked.discard(index)
        self._next[index] = max(self._next[index], source + 1)

    def give_back(self, ask: Ask) -> list[int]:
        """An ask is over. What of it is not in place counts as failed and is returned."""
        left = [index for index in ask.pieces if index in self._asked]
        for index in left:
            self.failed(index, ask.source)
        return left

    def wrong(self) -> None:
        """All pieces are in place and the whole is wrong: begin anew after the best source that had a part in it."""
        after = 1 + min(one[0] for one in self._came if one)
        self._came = [None] * len(self._came)
        self._next = [max(start, after) for start in self._next]
