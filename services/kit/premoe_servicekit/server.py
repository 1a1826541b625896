"""One gRPC server: our services, health, reflection by flag, graceful stop. A process may run several.

server = RpcServer([Registration(SERVICE_NAME, servicer, add_…_to_server)], settings)
await server.start()           # not yet serving: health says so
await server.set_serving(True)
…
await server.stop()
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import grpc
from grpc_health.v1 import health_pb2_grpc

from premoe_runtime.formats.errors import InvalidInput, Unavailable
from premoe_servicekit.health import OVERALL, Health
from premoe_servicekit.interceptor import RpcInterceptor
from premoe_servicekit.settings import ServerSettings
from premoe_servicekit.tls import Tls, admission_of

T = TypeVar("T")

HEALTH_SERVICE = "grpc.health.v1.Health"

_started: weakref.WeakSet[RpcServer] = weakref.WeakSet()


class Registration(NamedTuple):
    """A servicer under its full name, e.g. ``premoe.patterns.v1.PatternService``."""

    name: str
    add_to: Callable[[grpc.aio.Server], None]


def registration(name: str, servicer: T, add: Callable[[T, grpc.aio.Server], None]) -> Registration:
    """Bind a servicer to its generated ``add_<Service>Servicer_to_server``."""
    return Registration(name, lambda server: add(servicer, server))


class RpcServer:
    """A gRPC server on ``host:port``; ``port`` overrides the settings' one (an admin server has its own).

    Create, start and stop it on the same event loop.
    """

    def __init__(
        self,
        services: Sequence[Registration],
        settings: ServerSettings,
        *,
        port: int | None = None,
        tls: Tls | None = None,
    ) -> None:
        self._settings = settings
        self._tls = tls
        self._port = settings.port if port is None else port
        self._names = [service.name for service in services]
        self.health = Health(self._names)
        self._server = grpc.aio.server(
            interceptors=[RpcInterceptor(admission_of(settings, tls))], options=_options(settings)
        )
        for service in services:
            service.add_to(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        if settings.reflection:
            # Imported here: it is off by default and not small.
            from grpc_reflection.v1alpha import reflection

            reflection.enable_server_reflection([*self._names, HEALTH_SERVICE, reflection.SERVICE_NAME], self._server)
        self.address = ""

    async def start(self) -> str:
        """Bind and accept calls, health still NOT_SERVING. Returns the address bound.

        Raises Unavailable (PORT_IN_USE) or InvalidInput (ADDRESS_INVALID).
        """
        host = self._settings.host
        check_port_is_free(host, self._port)
        wanted = join_address(host, self._port)
        try:
            if self._tls is None:
                port = self._server.add_insecure_port(wanted)
            else:
                port = self._server.add_secure_port(wanted, self._tls.server_credentials())
        except RuntimeError:
            raise in_use(host, self._port) from None
        await self._server.start()
        _started.add(self)
        self.address = join_address(host, port)
        return self.address

    async def set_serving(self, serving: bool, service: str = OVERALL) -> None:
        await self.health.set_serving(serving, service)

    async def stop(self, grace_s: float | None = None) -> None:
        """Health NOT_SERVING, no new calls; running ones get ``grace_s`` (the settings' by default) to end."""
        await self.health.stop()
        await self._server.stop(self._settings.grace_s if grace_s is None else grace_s)
        _started.discard(self)


def resolved(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    """The family of an address to listen on, and what ``bind`` wants. Raises OSError."""
    kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return kind, address


def check_port_is_free(host: str, port: int) -> None:
    """Raise Unavailable when somebody listens on ``host:port``, InvalidInput when it can be no address of ours.

    gRPC itself would write a page of its own log about either.
    """
    try:
        kind, address = resolved(host, port)
        with socket.socket(kind, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise in_use(host, port) from None
        raise InvalidInput(
            f"cannot listen on {join_address(host, port)}: {error.strerror or error}", reason="ADDRESS_INVALID"
        ) from None


async def stop_all() -> None:
    """Stop at once what still runs: gRPC complains at length about servers that are left behind."""
    await asyncio.gather(*(server.stop(0) for server in list(_started)))


class Stoppable(Protocol):
    """A server of another kind, which is drained together with those of RPCs."""

    async def stop(self, grace_s: float | None = None) -> None:
        """What runs gets ``grace_s`` to end; a second call with less cuts the first one short."""
        ...


async def serve_until(
    stopped: asyncio.Event,
    servers: Sequence[RpcServer],
    force: asyncio.Event | None = None,
    *,
    drain_delay_s: float = 0.0,
    beside: Sequence[Stoppable] = (),
) -> None:
    """Wait for ``stopped``, then stop all servers gracefully; ``force`` cuts every wait short.

    Health turns NOT_SERVING at once; for ``drain_delay_s`` more seconds calls are still taken, because callers hear
    of it late. Then clients are sent away (GOAWAY) and running calls get the grace period to end, as does what runs
    ``beside`` them: not one after the other, which a pod has no time for.
    """
    await stopped.wait()
    await asyncio.gather(*(server.health.stop() for server in servers))
    if drain_delay_s > 0 and not (force is not None and force.is_set()):
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for((force or asyncio.Event()).wait(), drain_delay_s)
    ending: tuple[Stoppable, ...] = (*servers, *beside)
    stopping = {asyncio.create_task(server.stop()) for server in ending}
    forced = asyncio.create_task((force or asyncio.Event()).wait())
    waiting: set[asyncio.Task[None] | asyncio.Task[Literal[True]]] = {*stopping, forced}
    while any(not task.done() for task in stopping) and not forced.done():
        await asyncio.wait([task for task in waiting if not task.done()], return_when=asyncio.FIRST_COMPLETED)
    if forced.done():
        await asyncio.gather(*(server.stop(0) for server in ending))
    forced.cancel()
    await asyncio.gather(*stopping)


def _options(settings: ServerSettings) -> list[tuple[str, int]]:
    age = settings.max_connection_age_s
    return [
        *([] if age is None else [("grpc.max_connection_age_ms", max(1, int(age * 1000)))]),
        # Two servers must not share a port by accident and answer in turns.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 30_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


def in_use(host: str, port: int) -> Unavailable:
    return Unavailable(
        f"port {port} on {host} is in use; choose another one, or 0 for a free one", reason="PORT_IN_USE"
    )


def join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
