"""The plain-text health port for kubelet probes, which know no TLS.

It answers what the main server's health says, and with TLS only after that server has taken a mutual-TLS call from
this process within the last seconds: an expired or broken certificate turns the port red.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from premoe_servicekit.errors import one_line
from premoe_servicekit.health import NOT_SERVING, SERVICE_UNKNOWN, SERVING
from premoe_servicekit.server import RpcServer, check_port_is_free, join_address
from premoe_servicekit.settings import ServerSettings
from premoe_servicekit.tls import Material, Tls

log = logging.getLogger(__name__)

LIVENESS = "liveness"
"""Service name that is SERVING as long as this process answers at all, whatever it serves: for liveness probes."""
LOOPBACK_EVERY_S = 5.0
LOOPBACK_TIMEOUT_S = 2.0

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class ProbeServer:
    """A gRPC server on ``health_port`` with nothing but health; NOT_SERVING until ``attach``."""

    def __init__(self, settings: ServerSettings, tls: Tls | None) -> None:
        self._host = settings.health_host or settings.host
        self._port = settings.health_port or 0
        self._probes = _Probes(tls)
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        health_pb2_grpc.add_HealthServicer_to_server(self._probes, self._server)

    async def start(self) -> str:
        """Bind and answer; returns the address. Raises Unavailable (PORT_IN_USE) or InvalidInput (ADDRESS_INVALID)."""
        check_port_is_free(self._host, self._port)
        port = self._server.add_insecure_port(join_address(self._host, self._port))
        await self._server.start()
        return join_address(self._host, port)

    def attach(self, server: RpcServer) -> None:
        """From now on answer for this server, which has started."""
        self._probes.attach(server)

    async def stop(self) -> None:
        await self._server.stop(0)


class _Probes(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    def __init__(self, tls: Tls | None) -> None:
        self._tls = tls
        self._server: RpcServer | None = None
        self._loopback: Loopback | None = None

    def attach(self, server: RpcServer) -> None:
        self._server = server
        if self._tls is not None:
            self._loopback = Loopback(server.address, self._tls)

    async def Check(self, request: health_pb2.HealthCheckRequest, context: _Context) -> health_pb2.HealthCheckResponse:
        status = await self._status(request.service)
        if status == SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service!r} here")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: _Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        last: int | None = None
        while True:
            status = await self._status(request.service)
            if status != last:
                last = status
                yield health_pb2.HealthCheckResponse(status=status)
            await asyncio.sleep(1.0)

    async def _status(self, service: str) -> int:
        if service == LIVENESS:
            return SERVING
        if self._server is None:
            return NOT_SERVING
        status = self._server.health.status(service)
        if status == SERVING and self._loopback is not None and not await self._loopback.works():
            return NOT_SERVING
        return status


class Loopback:
    """Calls this process's own TLS port as a client does; the result holds for ``LOOPBACK_EVERY_S``."""

    def __init__(self, address: str, tls: Tls, *, clock: Callable[[], float] = time.monotonic) -> None:
        host, _, port = address.rpartition(":")
        # Whoever listens on all addresses listens on this one.
        self._host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host.strip("[]"), host.strip("[]"))
        self._port = int(port)
        self._tls = tls
        self._clock = clock
        self._lock = asyncio.Lock()
        self._tried_at: float | None = None
        self._worked = False
        self._name: tuple[Material, str] | None = None

    async def works(self) -> bool:
        """Whether the last try worked; tries again when that is too long ago. Several callers share one try."""
        async with self._lock:
            if self._tried_at is None or self._clock() - self._tried_at >= LOOPBACK_EVERY_S:
                worked = await self._try()
                if worked and not self._worked and self._tried_at is not None:
                    log.info("the TLS port answers again")
                self._worked, self._tried_at = worked, self._clock()
            return self._worked

    async def _try(self) -> bool:
        try:
            async with asyncio.timeout(LOOPBACK_TIMEOUT_S):
                await self._call(await self._own_name())
        except (TimeoutError, OSError, grpc.aio.AioRpcError) as error:
            why = error.details() if isinstance(error, grpc.aio.AioRpcError) else one_line(error)
            log.warning("the TLS port does not answer this process itself, so health is NOT_SERVING: %s", why)
            return False
        return True

    async def _call(self, name: str) -> None:
        """One health call over a fresh connection: an old one would outlive its certificate."""
        options = (
            ("grpc.ssl_target_name_override", name),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", 0),
        )
        credentials = self._tls.material().channel_credentials()
        async with grpc.aio.secure_channel(join_address(self._host, self._port), credentials, options) as channel:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())

    async def _own_name(self) -> str:
        """A name in the certificate that the port presents; nobody else's certificate need carry the address."""
        material = self._tls.material()
        if self._name is None or self._name[0] is not material:
            self._name = (material, await self._presented_name())
        return self._name[1]

    async def _presented_name(self) -> str:
        context = ssl.create_default_context(cafile=str(self._tls.ca))
        context.check_hostname = False
        context.load_cert_chain(self._tls.cert, self._tls.key, password=lambda: "")
        context.set_alpn_protocols(["h2"])
        _, writer = await asyncio.open_connection(self._host, self._port, ssl=context)
        try:
            return presented_name(writer.get_extra_info("peercert") or {})
        finally:
            writer.transport.abort()


def presented_name(certificate: dict[str, Any]) -> str:
    """A name that a certificate (as ``SSLSocket.getpeercert`` gives it) is valid for.

    Raises OSError when it has none: no client could verify it either.
    """
    names = [(kind, str(value)) for kind, value in certificate.get("subjectAltName", ())]
    for wanted in ("DNS", "IP Address"):
        for kind, value in names:
            if kind == wanted:
                return value.replace("*", "loopback", 1)
    raise ssl.SSLCertVerificationError("the certificate names no host")
