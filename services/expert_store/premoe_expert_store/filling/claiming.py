"""A claim that is kept up while its blob is read."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol, TypeVar

from premoe_expert_store.filling.claims import Claims
from premoe_runtime.formats.errors import PremoeError

T = TypeVar("T")

log = logging.getLogger(__name__)


class InThread(Protocol):
    """Runs blocking work."""

    def __call__(self, work: Callable[[], T], /) -> Awaitable[T]: ...


class Claim:
    """Ours until ``drop``, or until Redis lost it: then another replica may read the same, which costs a read."""

    def __init__(self, claims: Claims, in_thread: InThread, digest: str, token: str) -> None:
        self._claims, self._in_thread = claims, in_thread
        self._digest, self._token = digest, token
        self._keeping = asyncio.create_task(self._keep_up())

    async def drop(self) -> None:
        """Give it back. Raises nothing: it ends by itself."""
        self._keeping.cancel()
        with suppress(PremoeError):
            await self._in_thread(lambda: self._claims.drop(self._digest, self._token))

    async def _keep_up(self) -> None:
        with suppress(PremoeError):
            while True:
                await asyncio.sleep(self._claims.claim_s / 3)
                if not await self._in_thread(lambda: self._claims.prolong(self._digest, self._token)):
                    return


class Claiming:
    """Claims on an event loop."""

    def __init__(self, claims: Claims, in_thread: InThread) -> None:
        self._claims, self._in_thread = claims, in_thread

    async def take(self, digest: str) -> Claim | None:
        """Raises PremoeError when Redis does not answer, or is full."""
        token = await self._in_thread(lambda: self._claims.take(digest))
        return None if token is None else Claim(self._claims, self._in_thread, digest, token)

    def close(self) -> None:
        self._claims.close()
