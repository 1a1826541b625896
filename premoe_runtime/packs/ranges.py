"""Turning many small reads into few ranged ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from premoe_runtime.storage import READ_PART_BYTES, Store

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Read:
    """``view.nbytes`` bytes of ``file`` from ``offset`` on belong into ``view``."""

    file: str
    offset: int
    view: memoryview


@dataclass(frozen=True, slots=True)
class Run:
    """One request: ``views`` are filled one after another from ``offset`` on."""

    file: str
    offset: int
    views: tuple[memoryview, ...]


def coalesce(reads: Sequence[Read], limit: int = READ_PART_BYTES) -> list[Run]:
    """Join neighbours and cut what is longer than ``limit``, so that no request exceeds ``limit`` bytes."""
    runs: list[Run] = []
    size = 0
    for read in sorted(reads, key=lambda read: (read.file, read.offset)):
        for start in range(0, read.view.nbytes, limit):
            view = read.view[start : start + limit]
            last = runs[-1] if runs else None
            adjacent = last is not None and last.file == read.file and last.offset + size == read.offset + start
            if last is not None and adjacent and size + view.nbytes <= limit:
                runs[-1] = Run(last.file, last.offset, (*last.views, view))
                size += view.nbytes
            else:
                runs.append(Run(read.file, read.offset + start, (view,)))
                size = view.nbytes
    return runs


def read_all(store: Store, reads: Sequence[Read]) -> None:
    """Fill every view."""
    for run in coalesce(reads):
        store.read_into(run.file, run.offset, run.views)


def read_ahead(items: Iterable[Item], load: Callable[[Item], Result], depth: int) -> Iterator[Result]:
    """``load(item)`` of every item in order, up to ``depth`` of them ahead of the consumer in other threads.

    The one after those is loaded only when the consumer asks for the next.
    """
    if depth < 1:
        yield from map(load, items)
        return
    left = iter(items)
    with ThreadPoolExecutor(depth, thread_name_prefix="read-ahead") as pool:
        pending: deque[Future[Result]] = deque(pool.submit(load, item) for item in islice(left, depth))
        try:
            while pending:
                result = pending.popleft().result()
                pending.extend(pool.submit(load, item) for item in islice(left, 1))
                yield result
        finally:
            for future in pending:
                future.cancel()
