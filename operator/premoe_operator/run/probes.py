"""HTTP for the kubelet and Prometheus: /livez, /readyz, /metrics. Not kopf's server, because a standby has no kopf."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

REQUEST_TIMEOUT_S = 5.0
REQUEST_MAX_BYTES = 8192

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer."""

    ok: bool
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


Handler = Callable[[], Awaitable[Answer]]


class ProbeServer:
    """Answers GET for a fixed table of paths, one request a connection."""

    def __init__(self, host: str, port: int, handlers: Mapping[str, Handler]) -> None:
        self._host = host
        self._port = port
        self._handlers = handlers
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """Where it listens, once started."""
        assert self._server is not None, "not started"
        port = self._server.sockets[0].getsockname()[1]
        return f"http://{self._host}:{port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, self._host, self._port, limit=REQUEST_MAX_BYTES)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(await self._answer(head))
                await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def _answer(self, head: bytes) -> bytes:
        method, _, rest = head.split(b"\r\n", 1)[0].decode("latin-1").partition(" ")
        path = rest.split(" ")[0].split("?")[0]
        handler = self._handlers.get(path)
        if method != "GET" or handler is None:
            return _response("404 Not Found", Answer(False, b"not found\n"))
        answer = await handler()
        if not answer.ok:
            _log.warning("%s: %s", path, answer.body.decode().strip())
        return _response("200 OK" if answer.ok else "503 Service Unavailable", answer)


def _response(status: str, answer: Answer) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {answer.content_type}\r\n"
        f"Content-Length: {len(answer.body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + answer.body


def verdict(fault: str | None) -> Answer:
    """The answer of a probe: what is wrong, or ok."""
    return Answer(fault is None, f"{fault or 'ok'}\n".encode())
