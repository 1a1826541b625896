"""Memory that is filled again and again: fresh memory costs more than everything else that is done with a blob."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np

from premoe_runtime.packs.ranges import read_ahead

Item = TypeVar("Item")
Result = TypeVar("Result")


class Rooms:
    """Memory for ``depth`` results that are loaded ahead and one in use, each of ``num_bytes``, zero at first."""

    def __init__(self, num_bytes: int, depth: int) -> None:
        self._depth = depth
        self._rooms = [np.zeros(num_bytes, np.uint8).data for _ in range(depth + 1)]

    def read_ahead(self, items: Iterable[Item], load: Callable[[Item, memoryview], Result]) -> Iterator[Result]:
        """``load(item, room)`` of every item in order, ahead of the consumer in other threads.

        A result's room is filled anew once the consumer asks for the next one.
        """
        # While one result is in use, no more than the ``depth`` after it are loaded: they take every other room.
        placed = ((item, self._rooms[index % len(self._rooms)]) for index, item in enumerate(items))
        return read_ahead(placed, lambda one: load(*one), self._depth)
