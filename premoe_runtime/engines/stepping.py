"""The loop that any engine in this process runs: commands between two steps, copies and grammars beside them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import torch

from premoe_runtime.engines.base import (
    Cancel,
    Check,
    Checked,
    Command,
    Ended,
    Load,
    Loaded,
    Pause,
    Publish,
    Published,
    Report,
    RequestLimits,
    Resume,
    Retire,
    StopLoad,
    Submit,
)
from premoe_runtime.engines.grammar import Grammars, Matcher
from premoe_runtime.engines.sequences import Sequences
from premoe_runtime.formats.errors import Conflict
from premoe_runtime.residency.copier import Copied, Copy
from premoe_runtime.residency.host_arena import HostArena
from premoe_runtime.residency.slot_tables import SlotTables

logger = logging.getLogger(__name__)

DEFAULT_MAX_SEQUENCES = 8
DEFAULT_CONTEXT = 4096
DEFAULT_PREFILL_TOKENS = 256
_CLOSE_SECONDS = 30.0
"""How long ``close`` waits for the step and the copy at hand."""


class Carrier(Protocol):
    """Carries out copies, one at a time: ``residency.copier.Copier``, or one that packs for a kernel."""

    def run(self, copy: Copy, cancelled: Callable[[], bool], *, after: torch.cuda.Event | None) -> Copied: ...


@dataclass(frozen=True, slots=True)
class Compiled:
    """The grammar of a sequence is there, or cannot be."""

    request: Submit
    matcher: Matcher | Exception


@dataclass(frozen=True, slots=True)
class CopiesEnded:
    """The thread that copies has died; nobody would ever answer a ``Load``."""

    error: BaseException


Item = Command | Compiled | CopiesEnded | None
"""What an engine's thread carries out between two steps; None: it is to close."""


class Inbox:
    """Items in the order in which they came. Filled from any thread, emptied by the engine's."""

    def __init__(self) -> None:
        self._items: SimpleQueue[Item] = SimpleQueue()

    def put(self, item: Item) -> None:
        self._items.put(item)

    def get(self, *, block: bool) -> Item:
        """Raises queue.Empty where there is none and it need not ``block``: a step comes next."""
        return self._items.get(block=block)


class StepEngine:
    """Implements ``premoe_runtime.engines.base.Engine`` over sequences that know what a step is.

    One thread runs steps and, between them, carries out commands; others copy blobs and compile grammars meanwhile.
    """

    def __init__(
        self,
        limits: RequestLimits,
        sequences: Sequences[Any],
        tables: SlotTables,
        copier: Carrier,
        grammars: Grammars,
        arena: HostArena,
        inbox: Inbox | None = None,
    ) -> None:
        self.limits = limits
        self._sequences, self._tables, self._copier, self._grammars = sequences, tables, copier, grammars
        self._arena = arena
        if tables.device.type == "cuda":
            arena.lock_pages()
        self._compiling = ThreadPoolExecutor(1, thread_name_prefix="premoe-grammar")
        self._inbox = inbox or Inbox()
        self._copies: SimpleQueue[tuple[Copy, torch.cuda.Event | None, int] | None] = SimpleQueue()
        self._stop_load = threading.Event()
        self._retired: tuple[torch.cuda.Event | None, int] = (None, 0)
        self._report: Callable[[Report], None] = lambda report: None
        self._threads = (
            threading.Thread(target=self._run, name="premoe-engine", daemon=True),
            threading.Thread(target=self._run_copies, name="premoe-copy", daemon=True),
        )

    def start(self, report: Callable[[Report], None]) -> None:
        self._report = report
        for thread in self._threads:
            thread.start()

    def post(self, command: Command) -> None:
        if isinstance(command, StopLoad):
            # Between two steps would be late: the copy runs beside them.
            self._stop_load.set()
        else:
            self._inbox.put(command)

    def close(self) -> None:
        self._stop_load.set()
        self._inbox.put(None)
        for thread in self._threads:
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join(_CLOSE_SECONDS)
        self._compiling.shutdown(wait=False, cancel_futures=True)
        if not any(thread.is_alive() for thread in self._threads):
            self._arena.unlock_pages()

    # The rest runs on the engine's threads.

    def _run(self) -> None:
        error: BaseException | None = None
        # OpenMP counts threads for each thread anew, and torch tells it at its first parallel loop: too late for a
        # kernel that asks OpenMP itself before and after that.
        torch.set_num_threads(torch.get_num_threads())
        try:
            while self._carry_out_commands():
                self._sequences.step()
                self._tell()
            self._sequences.cancel_all()
            self._tell()
        except BaseException as failure:
            logger.critical("the engine ends", exc_info=failure)
            error = failure
        self._copies.put(None)
        self._report(Ended(error))

    def _carry_out_commands(self) -> bool:
        """All commands that are there; waits for one while nothing can run. False once the engine is to close."""
        while True:
            try:
                command = self._inbox.get(block=not self._sequences.can_step)
            except Empty:
                return True
            if command is None:
                return False
            self._carry_out(command)
            if not self._sequences.can_step:
                self._tell()

    def _carry_out(self, command: Item) -> None:
        match command:
            case CopiesEnded(error):
                raise error
            case Compiled(request, matcher):
                self._sequences.compiled(request, matcher)
            case Submit():
                self._submit(command)
            case Cancel(ids):
                self._sequences.cancel(ids)
            case Pause(ids):
                self._sequences.set_paused(ids, True)
            case Resume(ids):
                self._sequences.set_paused(ids, False)
            case Retire(experts):
                self._retired = self._tables.retire(experts), time.time_ns()
            case Load(copy):
                self._copies.put((copy, *self._retired))
            case Publish(placements, row):
                rows = {} if row is None else {row.row: row.kept}
                self._tables.publish(placements, rows, semantics="selection" if row is None else row.semantics)
                self._report(Published(time.time_ns()))
            case Check():
                self._report(Checked(self._check()))

    def _submit(self, request: Submit) -> None:
        try:
            self.limits.check(request.token_ids, request.active, request.sampling)
            self._sequences.add(request)
        except Exception as error:
            self._sequences.refuse(request.request_id, error)
            return
        if request.grammar:
            self._compiling.submit(self._compile, request)

    def _compile(self, request: Submit) -> None:
        matcher: Matcher | Exception
        try:
            if not self._sequences.wants(request):
                raise Conflict("nobody waits for its grammar any more", reason="REQUEST_ENDED")
            matcher = self._grammars.compile(request.grammar)
        except Exception as error:
            matcher = error
        self._inbox.put(Compiled(request, matcher))

    def _check(self) -> Exception | None:
        try:
            self._tables.check_integrity()
        except Exception as error:
            return error
        return None

    def _tell(self) -> None:
        self._report(self._sequences.report())

    def _run_copies(self) -> None:
        try:
            while (item := self._copies.get()) is not None:
                copy, after, retired_ns = item
                copied = self._copier.run(copy, self._stop_load.is_set, after=after)
                self._stop_load.clear()
                self._report(Loaded(copied, retired_ns))
        except BaseException as error:
            self._inbox.put(CopiesEnded(error))
