"""What runs in the child: builds an engine, carries commands to it and its reports back, ends with the parent."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection

from premoe_runtime.engines.base import Engine
from premoe_runtime.engines.child.wire import CloseEngine, Failed, Message, Ready, receive, send
from premoe_runtime.formats.errors import PremoeError

logger = logging.getLogger(__name__)

Build = Callable[[], AbstractContextManager[Engine]]
"""Sets the process up (logs, threads), loads the model and makes the engine; can be pickled."""


def run(connection: Connection, build: Build) -> None:
    """The child's whole life. Nothing of it outlives the parent: the pipe's end tells of that, however it came."""
    # Signals to the whole group are the parent's to answer; it lets running requests end first.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    outgoing = _Outgoing(connection)
    incoming = _Incoming(connection)
    try:
        with build() as engine:
            outgoing(Ready(engine.limits))
            engine.start(outgoing)
            incoming.give(engine)
            incoming.closed.wait()
    except BaseException as error:
        if not isinstance(error, PremoeError):
            logger.critical("the engine cannot be loaded", exc_info=error)
        outgoing(Failed(error))


class _Outgoing:
    """Sends what several threads report, one after the other."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()

    def __call__(self, message: Message) -> None:
        try:
            with self._lock:
                send(self._connection, message)
        except OSError:
            os._exit(0)


class _Incoming:
    """Reads commands on a thread of its own, also while the model is loading: the parent may end then."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._engine: Engine | None = None
        self._given = threading.Event()
        self.closed = threading.Event()
        threading.Thread(target=self._run, name="premoe-commands", daemon=True).start()

    def give(self, engine: Engine) -> None:
        self._engine = engine
        self._given.set()

    def _run(self) -> None:
        while True:
            try:
                message = receive(self._connection)
            except (EOFError, OSError):
                # Nobody is left to answer: whatever step or file is at hand can go.
                os._exit(0)
            self._given.wait()
            assert self._engine is not None, "given before"
            if isinstance(message, CloseEngine):
                self._engine.close()
                self.closed.set()
                return
            self._engine.post(message)
