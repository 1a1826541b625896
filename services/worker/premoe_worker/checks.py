"""Grammars of requests: what they ask for is checked before anything else is done for them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from weakref import WeakValueDictionary

from premoe_runtime.engines.grammar_check import check_grammar, verdict
from premoe_runtime.formats.errors import Exhausted, InvalidInput
from premoe_worker.domain import Ask
from premoe_worker.grammars import answer_grammar
from premoe_worker.lane import Lane
from premoe_worker.tools.formats import ToolUse

_AT_ONCE = 2
"""Each in a process."""
_QUEUED = 8
"""New grammars that may wait: at worst each takes seconds."""


class Checks:
    """Only a grammar that nobody has checked yet waits; all who ask for the same one wait for one check.

    ``waiting``: requests that may. Use from one event loop.
    """

    def __init__(self, waiting: int) -> None:
        self._lane = Lane("checked", threads=_AT_ONCE, waiting=_QUEUED, things="new schemas")
        self._most_waiting, self._waiting = waiting, 0
        self._alike: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def grammar(self, ask: Ask, use: ToolUse) -> str:
        """See ``answer_grammar``. Raises InvalidInput, Exhausted (queue), Unavailable (no time to check)."""
        return await answer_grammar(ask, use, self._check)

    def close(self) -> None:
        self._lane.close()

    async def _check(self, grammar: str) -> None:
        while verdict(grammar) is None:
            await self._find_out(grammar)
        check_grammar(grammar)

    async def _find_out(self, grammar: str) -> None:
        if self._waiting >= self._most_waiting:
            raise Exhausted(
                f"{self._most_waiting} requests wait for their schemas to be checked already; try again later",
                reason="QUEUE_FULL",
            )
        self._waiting += 1
        try:
            async with self._alike.setdefault(grammar, asyncio.Lock()):
                if verdict(grammar) is None:
                    await self._lane.run(_judge, grammar)
        finally:
            self._waiting -= 1


def _judge(grammar: str) -> None:
    with suppress(InvalidInput):
        check_grammar(grammar)
