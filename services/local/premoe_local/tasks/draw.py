"""Random draws that are the same on every machine and Python version.

Only `random.Random.random` is promised to keep its sequence between Python versions, so every other draw here
is built from it; `hash()` is salted per process and is never used.
"""

import random
import zlib
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Draw:
    """A stream of draws named by its key."""

    def __init__(self, *key: str | int) -> None:
        self._random = random.Random("/".join(map(str, key)))

    def below(self, bound: int) -> int:
        """A whole number in [0, bound)."""
        return int(self._random.random() * bound)

    def between(self, low: int, high: int) -> int:
        """A whole number in [low, high], both ends included."""
        return low + self.below(high - low + 1)

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self._random.random() < probability

    def pick(self, items: Sequence[T]) -> T:
        """One of the items."""
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """All items in a random order (Fisher-Yates)."""
        result = list(items)
        for last in range(len(result) - 1, 0, -1):
            other = self.below(last + 1)
            result[last], result[other] = result[other], result[last]
        return result

    def sample(self, items: Sequence[T], count: int) -> list[T]:
        """`count` different items."""
        return self.shuffled(items)[:count]


def bucket(text: str, buckets: int) -> int:
    """A stable bucket for a text: the same everywhere, unlike `hash()`."""
    return zlib.crc32(text.encode()) % buckets
