"""What children of the tests build: engines that fail or die while they load."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from premoe_runtime.engines.base import Engine
from premoe_runtime.engines.child.crew import Alone
from premoe_runtime.engines.child.ranked import Member
from premoe_runtime.engines.hf.engine import HfEngine
from premoe_runtime.engines.hf.model import SlotModel, load_slot_model
from premoe_runtime.formats.errors import InvalidInput
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
def of_ranks(checkpoint: Path, arena: HostArena, fault: str, member: Member) -> Iterator[Engine]:
    """A rank that does what rank 0 does, over all slots. ``fault``: of rank 1, "raise" or "die" while it loads."""
    torch.set_num_threads(1)
    crew = member.crew()
    if crew.rank == 1 and fault == "raise":
        raise InvalidInput("rank 1 has no device", reason="DEVICE_INVALID")
    if crew.rank == 1 and fault == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault and not crew.rank:
        threading.Event().wait()
    yield Following(load_slot_model(MemorySource(checkpoint), slots=4), arena, crew)


class Following(HfEngine):
    """Over an inbox that ranks share."""

    def __init__(self, model: SlotModel, arena: HostArena, crew: Alone) -> None:
        super().__init__(model, arena)
        self._inbox = crew


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
