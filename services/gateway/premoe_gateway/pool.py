"""The gateway's connections to workers: opened for who appears, closed when the last request to who left has ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

import grpc

from premoe_gateway.adapters.worker import GrpcWorker
from premoe_gateway.service import Gateway
from premoe_gateway.targets import Endpoint, Targets

log = logging.getLogger(__name__)

LEAVE_POLL_S = 0.5


class WorkerPool:
    """Keeps a gateway's workers those that ``targets`` name; use from one event loop."""

    def __init__(self, gateway: Gateway, targets: Targets, connect: Callable[[Endpoint], grpc.aio.Channel]) -> None:
        self._gateway = gateway
        self._targets = targets
        self._connect = connect
        self._channels: dict[Endpoint, grpc.aio.Channel] = {}
        self._leaving: set[asyncio.Task[None]] = set()

    async def update(self) -> None:
        """Look the workers up; add new ones, let go of those that are gone."""
        wanted = await self._targets.endpoints()
        for endpoint in [known for known in self._channels if known not in wanted]:
            running = self._gateway.remove(endpoint.address)
            leaving = asyncio.create_task(_close_when_idle(self._channels.pop(endpoint), running))
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)
        for endpoint in wanted:
            if endpoint not in self._channels:
                channel = self._channels[endpoint] = self._connect(endpoint)
                self._gateway.add(GrpcWorker(endpoint.address, channel))

    async def follow(self, poll_s: float) -> None:
        """Update for ever."""
        while True:
            await asyncio.sleep(poll_s)
            try:
                await self.update()
            except Exception:
                # The workers that we have go on serving.
                log.exception("looking for workers ended in an unforeseen error")

    async def close(self) -> None:
        """Close every connection at once."""
        for leaving in list(self._leaving):
            leaving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await leaving
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()


async def _close_when_idle(channel: grpc.aio.Channel, running: Callable[[], int]) -> None:
    try:
        # Calls end without telling; one that is about to begin gets the time to.
        await asyncio.sleep(LEAVE_POLL_S)
        while running():  # noqa: ASYNC110
            await asyncio.sleep(LEAVE_POLL_S)
    finally:
        await channel.close()
