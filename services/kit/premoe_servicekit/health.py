"""The standard health service (grpc.health.v1): one status per service, and "" for the whole server.

Unlike the reference servicer, ``Watch`` streams end when the server stops: they would hold up the graceful stop for
the whole grace period.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVING: int = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING: int = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN: int = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
OVERALL = ""


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Health of the services of one server. Everything starts NOT_SERVING. Use from the server's event loop only."""

    def __init__(self, services: Iterable[str]) -> None:
        self._status: dict[str, int] = dict.fromkeys((OVERALL, *services), NOT_SERVING)
        self._changed = asyncio.Condition()
        self._stopping = False

    async def set_serving(self, serving: bool, service: str = OVERALL) -> None:
        """Set one service, or with "" all of them. No effect once the server is stopping."""
        names = list(self._status) if service == OVERALL else [service]
        async with self._changed:
            if not self._stopping:
                self._status.update(dict.fromkeys(names, SERVING if serving else NOT_SERVING))
                self._changed.notify_all()

    async def stop(self) -> None:
        """Turn everything NOT_SERVING for good and end the watchers' streams."""
        async with self._changed:
            self._stopping = True
            self._status = dict.fromkeys(self._status, NOT_SERVING)
            self._changed.notify_all()

    def status(self, service: str = OVERALL) -> int:
        return self._status.get(service, SERVICE_UNKNOWN)

    async def Check(
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.aio.ServicerContext[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse],
    ) -> health_pb2.HealthCheckResponse:
        if request.service not in self._status:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service!r} here")
        return health_pb2.HealthCheckResponse(status=self.status(request.service))

    async def Watch(
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.aio.ServicerContext[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse],
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        last: int | None = None
        while not self._stopping or self.status(request.service) != last:
            status = self.status(request.service)
            if status != last:
                last = status
                yield health_pb2.HealthCheckResponse(status=status)
                continue
            async with self._changed:
                if not self._stopping and self.status(request.service) == last:
                    await self._changed.wait()
