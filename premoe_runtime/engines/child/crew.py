"""Ranks of one engine, each in a process of its own: all carry out the same commands between the same steps.

Rank 0 hears the commands. Before every step it tells the others which ones it has taken, and that it steps; in the
step, which tokens it has chosen. So nothing has to be equal among them but what they compute together.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue

from premoe_runtime.engines.base import Command
from premoe_runtime.engines.child.wire import receive, send
from premoe_runtime.engines.choosing import Choice
from premoe_runtime.engines.stepping import Compiled, CopiesEnded, Inbox, Item


@dataclass(frozen=True, slots=True)
class Step:
    """No more commands before the coming step."""


@dataclass(frozen=True, slots=True)
class CompiledThere:
    """Rank 0 takes the next grammar in that was compiled."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """Tokens of the step at hand, in the order of its sequences, or why there is none."""

    tokens: tuple[int | Exception, ...]


Told = Command | Compiled | CompiledThere | Step | None
"""What rank 0 tells before a step; None: the engine is to close."""


class Alone(Inbox):
    """The only rank."""

    rank, ranks, meeting = 0, 1, ""

    def agree(self, choose: Callable[[], list[Choice]]) -> list[Choice]:
        """What is chosen in a step. ``choose`` finds it out, and is called on rank 0 only."""
        return choose()


class Leader(Alone):
    """Rank 0. ``others``: pipes to the other ranks; ``meeting``: where they find each other, as torch's URL.

    One whose pipe has ended is passed over: whoever started it knows.
    """

    def __init__(self, others: Sequence[Connection], meeting: str) -> None:
        super().__init__()
        self._others, self.ranks, self.meeting = others, 1 + len(others), meeting

    def get(self, *, block: bool) -> Item:
        try:
            item = super().get(block=block)
        except Empty:
            self._tell(Step())
            raise
        match item:
            case Compiled(_, matcher) if not isinstance(matcher, Exception):
                self._tell(CompiledThere())
            case CopiesEnded():
                pass
            case _:
                self._tell(item)
        return item

    def agree(self, choose: Callable[[], list[Choice]]) -> list[Choice]:
        found = choose()
        self._tell(Chosen(tuple(token for token, _ in found)))
        return found

    def _tell(self, told: Told | Chosen) -> None:
        for other in self._others:
            try:
                send(other, told)
            except OSError:
                continue


class Follower(Alone):
    """Another rank; ``leader``: the pipe from rank 0, with which this process ends."""

    def __init__(self, leader: Connection, rank: int, ranks: int, meeting: str) -> None:
        super().__init__()
        self.rank, self.ranks, self.meeting = rank, ranks, meeting
        self._leader = leader
        self._told: SimpleQueue[Told | CopiesEnded] = SimpleQueue()
        self._chosen: SimpleQueue[Chosen] = SimpleQueue()
        self._compiled: SimpleQueue[Compiled] = SimpleQueue()
        threading.Thread(target=self._listen, name="premoe-leader", daemon=True).start()

    def put(self, item: Item) -> None:
        match item:
            case Compiled():
                self._compiled.put(item)
            case CopiesEnded():
                self._told.put(item)
            case _:
                # Rank 0 hears it too, and tells when it is to be carried out.
                return

    def get(self, *, block: bool) -> Item:
        match self._told.get():
            case Step():
                raise Empty
            case CompiledThere():
                # Compiling began when it did on rank 0, or a moment later, and goes in the same order.
                return self._compiled.get()
            case Compiled(_, error):
                return Compiled(self._compiled.get().request, error)
            case item:
                return item

    def agree(self, choose: Callable[[], list[Choice]]) -> list[Choice]:
        return [(token, None) for token in self._chosen.get().tokens]

    def _listen(self) -> None:
        while True:
            try:
                told: Told | Chosen = receive(self._leader)
            except (EOFError, OSError):
                os._exit(0)
            if isinstance(told, Chosen):
                self._chosen.put(told)
            else:
                self._told.put(told)
            if told is None:
                return
