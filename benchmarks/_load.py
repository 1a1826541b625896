"""Processor time: whose threads took it, and as much of it taken by somebody else."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import NamedTuple

import blake3

_SLICE_SECONDS = 0.001
_END_SECONDS = 10.0


def thread_seconds(pid: int) -> Mapping[int, float]:
    """Processor seconds of every thread of a process so far."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError):  # it has ended
            found[int(task.name)] = int((task / "schedstat").read_text().split()[0]) / 1e9
    return found


class Load(NamedTuple):
    """Processes that do something else; ``on`` while they shall."""

    share: float
    on: Event


@contextmanager
def load(share: float) -> Iterator[Load]:
    """``share`` of a core, 1.5 being a core and a half, while it is on: hashing, in slices of a millisecond."""
    context = get_context("spawn")
    count = max(1, math.ceil(share))
    on = context.Event()
    processes = [context.Process(target=_burn, args=(on, share / count), daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield Load(share, on)
    finally:
        for process in processes:
            process.kill()
            process.join(_END_SECONDS)


def _burn(on: Event, share: float) -> None:
    data = bytes(1 << 16)
    while True:
        on.wait()
        began, used = time.perf_counter(), time.thread_time()
        while time.thread_time() - used < _SLICE_SECONDS:
            blake3.blake3(data)
        took = time.perf_counter() - began
        time.sleep(max(0.0, _SLICE_SECONDS / share - took))
