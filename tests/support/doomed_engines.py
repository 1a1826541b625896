"""What children of the tests build: engines that fail or die while they load."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from premoe_runtime.engines.base import Engine
from premoe_runtime.engines.hf.engine import HfEngine
from premoe_runtime.engines.hf.model import load_slot_model
from premoe_runtime.residency.host_arena import HostArena
from support.sources import MemorySource


class DyingSource(MemorySource):
    """Its process is killed while it reads the second file."""

    def read_file(self, path: str) -> bytes:
        if self.file_bytes:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read_file(path)


@contextmanager
def killed_while_loading(checkpoint: Path) -> Iterator[Engine]:
    yield HfEngine(load_slot_model(DyingSource(checkpoint), slots=4), HostArena(1, 0))


@contextmanager
def leaving_while_loading() -> Iterator[Engine]:
    os._exit(3)
    yield


@contextmanager
def unpicklable_failure() -> Iterator[Engine]:
    class Local(Exception):
        pass

    raise Local("no room for a thought")
    yield
