"""The parent's side of an engine that is several processes, a rank each: the engine port over all of them."""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from typing import Any

from premoe_runtime.engines.base import Checked, Command, Ended, Loaded, Report, StopLoad
from premoe_runtime.engines.child.crew import Alone, Follower, Leader
from premoe_runtime.engines.child.engine import SPAWN, ChildEngine
from premoe_runtime.engines.child.main import Build
from premoe_runtime.formats.errors import PremoeError
from premoe_runtime.residency.copier import merged


class Member:
    """What the process of a rank is given to meet the others; can be pickled while a process is started.

    ``pipes``: of rank 0 to each of the others, of another one from rank 0.
    """

    def __init__(self, rank: int, ranks: int, meeting: str, pipes: Sequence[Connection]) -> None:
        self._rank, self._ranks, self._meeting, self._pipes = rank, ranks, meeting, tuple(pipes)

    def crew(self) -> Alone:
        """In that process, once."""
        if self._rank:
            return Follower(self._pipes[0], self._rank, self._ranks, self._meeting)
        return Leader(self._pipes, self._meeting)


class RankedEngine:
    """Starts a child a rank and waits until all are ready; implements ``engines.base.Engine``.

    ``build`` makes of a ``Member`` what its child builds. Rank 0 hears the commands and tells of tokens; a copy, or a
    check, is over when it is on every rank. When one ends, all do. Raises what ``ChildEngine`` raises.
    """

    def __init__(
        self, build: Callable[[Member], Build], ranks: int, *, context: SpawnContext | ForkServerContext = SPAWN
    ) -> None:
        self._lock = threading.Lock()
        self._over = False
        self._report: Callable[[Report], None] = lambda report: None
        self._parts: list[dict[type[Report], deque[Any]]] = [{Loaded: deque(), Checked: deque()} for _ in range(ranks)]
        # Its name is part of the names of what the ranks share, so it is nobody else's.
        self._folder = Path(tempfile.mkdtemp(prefix="premoe-ranks-"))
        pipes = [multiprocessing.Pipe(duplex=False) for _ in range(ranks - 1)]
        meeting = f"file://{self._folder / self._folder.name}"
        members = [Member(0, ranks, meeting, [told for _, told in pipes])]
        members += [Member(rank, ranks, meeting, [heard]) for rank, (heard, _) in enumerate(pipes, 1)]
        try:
            self._ranks = [ChildEngine(build(member), context=context, wait=False) for member in members]
            for pipe in pipes:
                for end in pipe:
                    end.close()
            self._wait_ready()
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self.limits = self._ranks[0].limits

    @property
    def pids(self) -> list[int]:
        """Of the children, in order of their ranks."""
        return [rank.pid for rank in self._ranks]

    def start(self, report: Callable[[Report], None]) -> None:
        self._report = report
        for number, rank in enumerate(self._ranks):
            rank.start(partial(self._hear, number))

    def post(self, command: Command) -> None:
        # A copy runs beside steps on every rank; all else is told by rank 0 when its time has come.
        for rank in self._ranks if isinstance(command, StopLoad) else self._ranks[:1]:
            rank.post(command)

    def close(self) -> None:
        with ThreadPoolExecutor(len(self._ranks)) as pool:
            list(pool.map(ChildEngine.close, self._ranks))
        shutil.rmtree(self._folder, ignore_errors=True)

    def _wait_ready(self) -> None:
        """They become ready together, or not at all: each waits for the others."""
        with ThreadPoolExecutor(len(self._ranks)) as pool:
            waiting = [pool.submit(rank.wait_ready) for rank in self._ranks]
            failed = next((error for each in as_completed(waiting) if (error := each.exception()) is not None), None)
            if failed is not None:
                self._kill()
        if failed is not None:
            raise failed

    def _hear(self, number: int, report: Report) -> None:
        with self._lock:
            if self._over:
                return
            match report:
                case Ended(error):
                    self._end(number, error)
                case Loaded() | Checked():
                    self._parts[number][type(report)].append(report)
                    if all(part[type(report)] for part in self._parts):
                        self._report(_together([part[type(report)].popleft() for part in self._parts]))
                case _ if number == 0:
                    self._report(report)

    def _end(self, number: int, error: BaseException | None) -> None:
        """Whoever is left waits for the one that has gone in the midst of a step."""
        if error is None and number:
            return
        self._over = True
        if error is not None:
            self._kill()
            if isinstance(error, PremoeError):
                error = type(error)(f"rank {number} of {len(self._ranks)}: {error}", reason=error.reason)
        self._report(Ended(error))

    def _kill(self) -> None:
        for rank in self._ranks:
            rank.kill()


def _together(parts: Sequence[Any]) -> Report:
    """One report of those of all ranks."""
    if isinstance(parts[0], Checked):
        return Checked(next((part.error for part in parts if part.error is not None), None))
    return Loaded(merged([part.copied for part in parts]), max(part.retired_ns for part in parts))
