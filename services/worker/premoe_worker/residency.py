"""Keeping the experts of listed tasks resident: a file says which, the live pattern set says what they need.

Nothing here takes room from a request: patterns come in beside what runs, or later. What requests have displaced comes
back once they are through, and a new live set brings its own patterns.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from premoe_runtime.formats.allocation import slots_text
from premoe_runtime.formats.errors import PremoeError, Unavailable
from premoe_runtime.serving.reports import SwapReport
from premoe_runtime.serving.requests import KeptPattern
from premoe_worker.ports import Retrieval

log = logging.getLogger(__name__)

FILE = "residency.json"
POLL_S = 2.0
"""How soon a change of the file is noticed, and how soon displaced experts come back."""
LIVE_SET_S = 10.0
"""How soon a change of the live pattern set is noticed."""


class _Document(BaseModel):
    # What a newer writer adds is passed over.
    model_config = ConfigDict(frozen=True, extra="ignore")

    preload: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Preload:
    """What became of the listed tasks."""

    wanted: tuple[str, ...] = ()
    done: tuple[str, ...] = ()
    """Those brought in; requests may displace their experts for a while."""
    problem: str = ""
    """Why these are not all, where more time alone does not help."""


class Preloader(Protocol):
    """What is asked of the worker."""

    @property
    def weights_id(self) -> str: ...

    @property
    def slots(self) -> tuple[int, ...]:
        """Expert slots of every MoE layer."""
        ...

    async def pattern(self, pattern_id: str) -> KeptPattern: ...

    async def preload(self, pattern: KeptPattern) -> SwapReport | None:
        """None when somebody else needs the room now."""
        ...


def reachable(patterns: Mapping[str, KeptPattern], slots: Sequence[int]) -> dict[str, KeptPattern]:
    """The tasks' patterns, in their order, whose experts fit into the slots of every layer all together."""
    chosen: dict[str, KeptPattern] = {}
    taken = None
    for task, pattern in patterns.items():
        together = pattern.kept if taken is None else taken | pattern.kept
        if (np.sum(together, axis=1) <= np.asarray(slots)).all():
            taken = together
            chosen[task] = pattern
    return chosen


class ResidencyKeeper:
    """Watches the file in ``folder`` and keeps its tasks' experts resident while ``running``."""

    def __init__(
        self,
        worker: Preloader,
        retrieval: Retrieval,
        folder: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._worker = worker
        self._retrieval = retrieval
        self._path = folder / FILE
        self._clock = clock
        self._text: bytes | None = None
        self._tasks: tuple[str, ...] = ()
        self._live: Mapping[str, str] = {}
        self._live_until = float("-inf")
        self._done: dict[str, str] = {}
        """Pattern of each task that was brought in."""
        self._said = ""

    def state(self) -> Preload:
        """What became of the list so far."""
        done = tuple(task for task in self._tasks if self._done.get(task, "") == self._live.get(task))
        return Preload(self._tasks, done, self._said if len(done) < len(self._tasks) else "")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Look at the file every ``POLL_S`` seconds until the block ends."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def step(self) -> None:
        """One look: read what changed, and bring in what is missing and has room. Never raises a PremoeError."""
        self._read()
        if not self._tasks:
            return
        try:
            await self._refresh_live_set()
            wanted = await self._wanted()
            self._done = {
                task: known for task, known in self._done.items() if task in wanted and wanted[task].id == known
            }
            for task, pattern in wanted.items():
                report = await self._worker.preload(pattern)
                if report is None:
                    return
                self._done[task] = pattern.id
                if report.blobs:
                    log.info("preloaded pattern %s: %d experts", pattern.id[:16], report.blobs)
        except Unavailable as error:
            if error.reason not in ("DRAINING", "STOPPING"):
                self._say(f"preloading waits: {error}")
        except PremoeError as error:
            self._say(f"cannot preload: {error}")

    async def _run(self) -> None:
        while True:
            try:
                await self.step()
            except Exception:
                # A fault here must not end what only makes requests faster.
                log.exception("preloading ended in an unforeseen error")
            await asyncio.sleep(POLL_S)

    def _read(self) -> None:
        """Take the file over if it changed and can be read; the list before stays otherwise."""
        try:
            text = self._path.read_bytes()
        except OSError as error:
            self._say(f"{self._path}: {error.strerror}; {self._unchanged()}")
            return
        if text == self._text:
            return
        self._text = text
        try:
            tasks = _Document.model_validate_json(text).preload
        except ValidationError as error:
            log.warning("%s: %s; %s", self._path, error.errors()[0]["msg"], self._unchanged())
            return
        if tasks != self._tasks:
            log.info("tasks to preload: %s", ", ".join(tasks) or "none")
        self._tasks = tuple(dict.fromkeys(tasks))
        self._live_until = float("-inf")

    async def _refresh_live_set(self) -> None:
        if self._clock() >= self._live_until:
            self._live = await self._retrieval.live_tasks(self._worker.weights_id)
            self._live_until = self._clock() + LIVE_SET_S

    async def _wanted(self) -> dict[str, KeptPattern]:
        """The listed tasks that can be resident together, in their order."""
        unknown = [task for task in self._tasks if task not in self._live]
        patterns = {task: await self._worker.pattern(self._live[task]) for task in self._tasks if task in self._live}
        chosen = reachable(patterns, self._worker.slots)
        if unknown:
            self._say(f"the live pattern set has no task {', '.join(unknown)} to preload")
        elif len(chosen) < len(patterns):
            self._say(
                f"{slots_text(self._worker.slots)} slots a layer hold {len(chosen)} of {len(patterns)} tasks to preload"
            )
        else:
            self._said = ""
        return chosen

    def _unchanged(self) -> str:
        return f"still preloading {', '.join(self._tasks) or 'nothing'}"

    def _say(self, text: str) -> None:
        """Log a state once, not at every look."""
        if text != self._said:
            self._said = text
            log.warning("%s", text)
