"""Which pieces of a blob are there. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from premoe_runtime.formats.pieces import piece, piece_count

Origin = Literal["node", "redis", "peer", "object"]
"""Where bytes came from, nearest first: this node's cache, Redis, another replica's cache, object storage."""
ORIGINS: tuple[Origin, ...] = ("node", "redis", "peer", "object")


class Landing:
    """The pieces of one blob. With ``checked`` pieces, those at the start may be read before the last one is there."""

    def __init__(self, num_bytes: int, *, checked: bool) -> None:
        self._num_bytes = num_bytes
        self._checked = checked
        self._origins: list[Origin | None] = [None] * piece_count(num_bytes)
        self._first = 0
        self._right = False

    @property
    def missing(self) -> Sequence[int]:
        """Pieces that are not there, ascending."""
        return [index for index, origin in enumerate(self._origins) if origin is None]

    @property
    def readable_bytes(self) -> int:
        """Bytes from the start that may be read."""
        if self._right:
            return self._num_bytes
        if not self._checked or not self._first:
            return 0
        return piece(self._first - 1, self._num_bytes).end

    @property
    def there_bytes(self) -> int:
        """Of the pieces that are there."""
        return sum(piece(index, self._num_bytes).length for index, origin in enumerate(self._origins) if origin)

    @property
    def origin(self) -> Origin:
        """The farthest of where the pieces came from."""
        return max((one for one in self._origins if one), key=ORIGINS.index, default="node")

    @property
    def right(self) -> bool:
        """Whether the whole was held against its digest."""
        return self._right

    def came_from(self, origin: Origin) -> bool:
        """Whether any piece did."""
        return origin in self._origins

    def not_from(self, origin: Origin) -> list[int]:
        """Pieces that came from elsewhere, ascending."""
        return [index for index, one in enumerate(self._origins) if one != origin]

    def land(self, indices: Iterable[int], origin: Origin) -> None:
        """Pieces are there, and right where they can be checked."""
        for index in indices:
            self._origins[index] = origin
        while self._first < len(self._origins) and self._origins[self._first] is not None:
            self._first += 1

    def lose_all(self) -> None:
        """The whole is wrong, and nobody knows which pieces are."""
        self._origins = [None] * len(self._origins)
        self._first = 0

    def found_right(self) -> None:
        """The whole matches its digest."""
        self._right = True
