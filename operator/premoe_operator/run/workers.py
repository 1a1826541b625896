"""GetResidency of every worker behind a Service's name, by gRPC with a short deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import grpc
from premoe.worker.v1 import worker_pb2, worker_pb2_grpc
from premoe_servicekit.addresses import join, look_up
from premoe_servicekit.clients import channel
from premoe_servicekit.tls import Tls

from premoe_operator.decide.observed import WorkerPreload

AT_ONCE = 16


class GrpcWorkers:
    """Implements ``preload_watch.Workers``. No connection is kept: minutes lie between two calls."""

    def __init__(
        self,
        *,
        timeout_s: float,
        tls: Tls | None,
        lookup: Callable[[str, int], Awaitable[Sequence[str]]] = look_up,
    ) -> None:
        self._timeout_s = timeout_s
        self._tls = tls
        self._lookup = lookup
        self._few = asyncio.Semaphore(AT_ONCE)

    async def preloads(self, host: str, port: int, *, encrypted: bool) -> tuple[WorkerPreload, ...]:
        try:
            async with asyncio.timeout(self._timeout_s):
                addresses = await self._lookup(host, port)
        except (OSError, TimeoutError) as error:
            detail = getattr(error, "strerror", None) or "no answer in time"
            return (WorkerPreload(problem=f"{host} cannot be looked up: {detail}", has_answered=False),)
        tls = self._tls if encrypted else None
        return tuple(await asyncio.gather(*(self._ask(join(address, port), host, tls) for address in addresses)))

    async def _ask(self, address: str, server_name: str, tls: Tls | None) -> WorkerPreload:
        async with self._few, channel(address, tls=tls, server_name=server_name) as opened:
            stub = worker_pb2_grpc.WorkerServiceStub(opened)
            try:
                answer = await stub.GetResidency(worker_pb2.GetResidencyRequest(), timeout=self._timeout_s)
            except grpc.aio.AioRpcError as error:
                detail = " ".join((error.details() or error.code().name).split())
                return WorkerPreload(problem=f"worker {address} did not answer: {detail}", has_answered=False)
        return WorkerPreload(tuple(answer.preload), tuple(answer.preloaded), answer.preload_problem)
