"""The parent's side: the engine port, carried out by a child process."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import weakref
from collections.abc import Callable
from multiprocessing.context import ForkServerContext, SpawnContext
from queue import SimpleQueue

from premoe_runtime.engines.base import Command, Ended, Report, RequestLimits
from premoe_runtime.engines.child.main import Build, run
from premoe_runtime.engines.child.wire import CloseEngine, Failed, receive, send
from premoe_runtime.formats.errors import Unavailable

SPAWN = multiprocessing.get_context("spawn")
"""Never forked from here: threads, gRPC and CUDA do not survive it. A fork server pays where many are started."""
_CLOSE_SECONDS = 30.0
"""How long ``close`` waits for the step and the copy at hand before it kills the child."""
_DEATH_SECONDS = 5.0
"""How long a child may take to be gone once its pipe has ended."""


class ChildEngine:
    """Starts a child that builds an engine, and waits until it is ready; implements ``engines.base.Engine``.

    The child dies with this process and never outlives ``close``. If it dies by itself, the last report says of what.
    Raises what ``build`` raises there, and Unavailable (ENGINE_DIED) when the child dies before it is ready. Without
    ``wait`` that is left to ``wait_ready``.
    """

    limits: RequestLimits

    def __init__(self, build: Build, *, context: SpawnContext | ForkServerContext = SPAWN, wait: bool = True) -> None:
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=run, args=(theirs, build), name="premoe-engine", daemon=True)
        self._closing = False
        self._outbox: SimpleQueue[Command | CloseEngine] = SimpleQueue()
        self._report: Callable[[Report], None] = lambda report: None
        self._threads = (
            threading.Thread(target=self._send_all, name="premoe-commands", daemon=True),
            threading.Thread(target=self._receive_all, name="premoe-reports", daemon=True),
        )
        try:
            self._process.start()
        except OSError as error:
            raise Unavailable(f"the engine process cannot be started: {error}", reason="ENGINE_DIED") from error
        # It ignores SIGTERM, with which multiprocessing would end it when this process exits.
        self._kill = weakref.finalize(self, self._process.kill)
        theirs.close()
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Once, before anything else."""
        try:
            first = receive(self._connection)
        except (EOFError, OSError):
            raise Unavailable(f"{self._death()} while it loaded the model", reason="ENGINE_DIED") from None
        if isinstance(first, Failed):
            self._end_process()
            raise first.error
        self.limits = first.limits
        self._threads[0].start()

    @property
    def pid(self) -> int:
        """Of the child."""
        assert self._process.pid is not None, "started in the constructor"
        return self._process.pid

    def kill(self) -> None:
        """End the child at once; it may be in the midst of what never comes back."""
        self._process.kill()

    def start(self, report: Callable[[Report], None]) -> None:
        self._report = report
        self._threads[1].start()

    def post(self, command: Command) -> None:
        self._outbox.put(command)

    def close(self) -> None:
        self._closing = True
        self._outbox.put(CloseEngine())
        self._process.join(_CLOSE_SECONDS)
        self._end_process()
        for thread in self._threads:
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join(_DEATH_SECONDS)

    def _send_all(self) -> None:
        try:
            while True:
                message = self._outbox.get()
                send(self._connection, message)
                if isinstance(message, CloseEngine):
                    return
        except OSError:
            # The other thread learns of it too, and tells.
            return

    def _receive_all(self) -> None:
        try:
            report = receive(self._connection)
            while not isinstance(report, Ended):
                self._report(report)
                report = receive(self._connection)
        except (EOFError, OSError):
            died = self._death()
            report = Ended(None if self._closing else Unavailable(died, reason="ENGINE_DIED"))
        except Exception as error:
            # Whatever could not be read, nothing is known of what comes next.
            self._process.kill()
            report = Ended(error)
        self._report(report)

    def _death(self) -> str:
        """What became of a child whose pipe has ended."""
        self._process.join(_DEATH_SECONDS)
        self._end_process()
        code = self._process.exitcode
        if code is None or code >= 0:
            return f"the engine process ended by itself with exit code {code}; its log says why"
        name = signal.Signals(-code).name
        hint = ", as it happens when memory runs out" if -code == signal.SIGKILL else ""
        return f"the engine process was killed by {name}{hint}"

    def _end_process(self) -> None:
        if self._process.is_alive():
            self._process.join(_DEATH_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(_DEATH_SECONDS)
        self._kill.detach()
