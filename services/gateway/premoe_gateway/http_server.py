"""Uvicorn inside our own event loop: our signals, our port check, a clean stop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Generator

import uvicorn
from premoe_servicekit.server import check_port_is_free
from starlette.types import ASGIApp


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

    def __init__(self, app: ASGIApp, *, host: str, port: int, grace_s: float, log_level: str) -> None:
        self._host = host
        self._port = port
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="warning" if log_level == "info" else log_level,
            access_log=log_level == "debug",
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=int(grace_s),
        )
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None
        self.url = ""

    async def start(self) -> str:
        """Bind and accept requests. Raises Unavailable (PORT_IN_USE) or InvalidInput (ADDRESS_INVALID)."""
        check_port_is_free(self._host, self._port)
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listener = socket.create_server((self._host, self._port), family=family, backlog=2048)
        port = listener.getsockname()[1]
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]))
        await self._server.listening.wait()
        host = f"[{self._host}]" if ":" in self._host else self._host
        self.url = f"http://{host}:{port}"
        return self.url

    async def stop(self, force: asyncio.Event) -> None:
        """Take no new connections and let running requests end; ``force`` cuts that short."""
        if self._task is None:
            return
        self._server.should_exit = True
        forced = asyncio.create_task(force.wait())
        await asyncio.wait({self._task, forced}, return_when=asyncio.FIRST_COMPLETED)
        self._server.force_exit = forced.done()
        forced.cancel()
        await self._task
