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
from premoe_gateway.http.protocol import MAX_HEAD_BYTES, ClientBounds, bounded
from premoe_gateway.settings import KEEP_ALIVE_S

_LAST_WORDS_S = 3
"""Seconds that requests which were cut get to tell their clients."""


_OTHER_FILES = 200
"""Connections to workers, logs, what Python has open."""


def _make_room(connections: int) -> None:
    """Let this process have as many files open as it may need, as far as the system lets it: often it is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
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
        self._server = _Server(self.config)
        self._task: asyncio.Task[None] | None = None
        self.url = ""

    async def start(self) -> str:
        """Bind and accept requests. Raises Unavailable (PORT_IN_USE) or InvalidInput (ADDRESS_INVALID)."""
        check_port_is_free(self._host, self._port)
        _make_room(self._connections)
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listener = socket.create_server((self._host, self._port), family=family, backlog=2048)
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
