"""A parent of an engine process that is killed by the test; its engine does nothing, and nothing heavy is imported."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from premoe_runtime.engines.base import Command, Engine, Report, RequestLimits
from premoe_runtime.engines.child.engine import ChildEngine

FOR_EVER = 3600


class IdleEngine:
    """Tells its process's id once it is started."""

    def __init__(self, pid_file: Path) -> None:
        self.limits = RequestLimits(context=8, vocabulary=8, top_k=1)
        self._pid_file = pid_file

    def start(self, report: Callable[[Report], None]) -> None:
        tell(self._pid_file)

    def post(self, command: Command) -> None:
        raise NotImplementedError

    def close(self) -> None:
        threading.Event().wait()  # not even now does it end by itself


@contextmanager
def idle(pid_file: Path) -> Iterator[Engine]:
    yield IdleEngine(pid_file)


@contextmanager
def loading_for_ever(pid_file: Path) -> Iterator[Engine]:
    tell(pid_file)
    time.sleep(FOR_EVER)
    yield IdleEngine(pid_file)


def tell(pid_file: Path) -> None:
    draft = pid_file.with_suffix(".draft")
    draft.write_text(str(os.getpid()))
    draft.rename(pid_file)


def main() -> None:
    """Arguments: the builder's name, the file for the child's process id."""
    builder = {"idle": idle, "loading_for_ever": loading_for_ever}[sys.argv[1]]
    ChildEngine(partial(builder, Path(sys.argv[2])))
    time.sleep(FOR_EVER)


if __name__ == "__main__":
    main()
