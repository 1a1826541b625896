"""Uvicorn inside our own event loop: our signals, our port check, a clean stop, one HTTP parser everywhere."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections.abc import Awaitable, Callable, Generator

import uvicorn
from premoe_servicekit.server import check_port_is_free
from starlette.types import ASGIApp

from premoe_gateway.http.certificate import Certificate
from premoe_gateway.http.listener import Listener
from premoe_gateway.http.protocol import MAX_HEAD_BYTES, ClientBounds, bounded
from premoe_gateway.settings import KEEP_ALIVE_S

_LAST_WORDS_S = 3
"""Seconds that requests which were cut get to tell their clients."""


_OTHER_FILES = 200
"""Connections to workers, logs, what Python has open."""
_TOLD = 100
"""Connections beyond the bound that are kept for as long as it takes to tell them so; those beyond are closed."""


def _make_room(connections: int) -> int:
    """How many connections may be open: as many files as the process may need, where the system lets it have them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _TOLD + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    files = wanted if soft == resource.RLIM_INFINITY else min(wanted, soft)
    return max(1, files - _OTHER_FILES)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, handshake_s: float) -> None:
        super().__init__(config)
        self._handshake_s = handshake_s
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's for sockets of ours; it has no setting for the time that a TLS handshake may take."""
        await self.lifespan.startup()

        def connection() -> asyncio.Protocol:
            kind: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
            return kind(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

        self.servers = [
            await asyncio.get_running_loop().create_server(
                connection,
                sock=listener,
                ssl=self.config.ssl,
                backlog=self.config.backlog,
                ssl_handshake_timeout=self._handshake_s if self.config.ssl else None,
            )
            for listener in sockets or []
        ]
        self.started = True
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """The process owns the signals; uvicorn would take them over and raise them again at the end."""
        yield


class HttpServer:
    """Serves one ASGI application on ``host:port``; start and stop on the same event loop."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        host: str,
        port: int,
        grace_s: float,
        log_level: str = "warning",
        keep_alive_s: float = KEEP_ALIVE_S,
        bounds: ClientBounds = ClientBounds(),
        certificate: Certificate | None = None,
    ) -> None:
        self._host = host
        self._port = port
        self._grace_s = grace_s
        self._connections = bounds.connections
        self.config = uvicorn.Config(
            app,
            log_config=None,
            log_level="warning" if log_level == "info" else log_level,
            access_log=log_level == "debug",
            lifespan="off",
            server_header=False,
            http=bounded(bounds),  # h11, not what else may be installed: parsers differ in what they refuse
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            ssl_context_factory=None if certificate is None else lambda config, default: certificate.context(),
            workers=1,  # or uvicorn reads a variable of the platform
            ws="none",
            loop="asyncio",
            timeout_keep_alive=max(1, round(keep_alive_s)),
            timeout_graceful_shutdown=int(grace_s) + _LAST_WORDS_S,
        )
        self._server = _Server(self.config, bounds.receive_s)
        self._task: asyncio.Task[None] | None = None
        self.url = ""

    async def start(self) -> str:
        """Bind and accept requests. Raises Unavailable (PORT_IN_USE) or InvalidInput (ADDRESS_INVALID)."""
        check_port_is_free(self._host, self._port)
        room = _make_room(self._connections)
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listener = Listener(socket.create_server((self._host, self._port), family=family, backlog=2048), room)
        port = listener.getsockname()[1]
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]))
        await self._server.listening.wait()
        host = f"[{self._host}]" if ":" in self._host else self._host
        self.url = f"{'https' if self.config.is_ssl else 'http'}://{host}:{port}"
        return self.url

    async def stop(self, force: asyncio.Event, cut: Callable[[], Awaitable[None]] | None = None) -> None:
        """Take no new connections and let running requests end; ``force`` cuts the grace period short.

        Then ``cut`` ends the work behind those that still run, so that each can tell its client why.
        """
        if self._task is None:
            return
        self._server.should_exit = True
        forced = asyncio.create_task(force.wait())
        await asyncio.wait({self._task, forced}, timeout=self._grace_s, return_when=asyncio.FIRST_COMPLETED)
        if cut is not None and not self._task.done():
            await cut()
            await asyncio.wait({self._task}, timeout=_LAST_WORDS_S)
        self._server.force_exit = forced.done()
        forced.cancel()
        await self._task
