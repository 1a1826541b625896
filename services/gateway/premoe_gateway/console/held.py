"""A document that is made at most once an interval, however many ask for it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Body:
    """Bytes to send, under the tag by which browsers ask whether they have changed."""

    content: bytes
    media_type: str

    @cached_property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'


class Held:
    """What ``make`` gave last, for ``seconds``. Who asks while it is made waits for the same one, or its failure."""

    def __init__(
        self,
        make: Callable[[], Awaitable[Mapping[str, object]]],
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make = make
        self._seconds = seconds
        self._clock = clock
        self._made: asyncio.Task[Body] | None = None
        self._until = 0.0

    async def get(self) -> Body:
        """Raises what ``make`` raised."""
        if self._made is None or (self._made.done() and self._clock() >= self._until):
            self._made = asyncio.create_task(self._body())
        # Shielded: one page that is closed must not take it from the others.
        return await asyncio.shield(self._made)

    async def _body(self) -> Body:
        try:
            document = await self._make()
            text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
            return Body(text.encode(), "application/json")
        finally:
            self._until = self._clock() + self._seconds
