"""A small server that answers as an OpenAI endpoint does, or as broken ones do: what comes over the wire is the test's.

Runs in a thread of its own; the program under test has the main thread.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

Write = Callable[[bytes], Awaitable[None]]
Handler = Callable[[Mapping[str, Any], Write], Awaitable[None]]
"""Given a request's body and how to write; afterwards the connection closes."""

STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
MODELS = b'{"object":"list","data":[{"id":"fake","object":"model"}]}'


@dataclass
class SseServer:
    """Where it is, and what it was asked."""

    url: str
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)


def whole(body: bytes, status: str = "200 OK", kind: str = "application/json") -> bytes:
    """A whole HTTP answer."""
    head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    return head.encode() + body


def event(value: object) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()


def piece(text: str, finish: str | None = None) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]})


def usage(prompt: int, completion: int) -> bytes:
    return event({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion}})


async def answer(body: Mapping[str, Any], write: Write, *, tokens: int = 4, pause_s: float = 0.0) -> None:
    """A good answer of so many tokens."""
    await write(STREAM)
    for _ in range(tokens):
        await write(piece("a"))
        await asyncio.sleep(pause_s)
    await write(piece("", "stop") + usage(7, tokens) + b"data: [DONE]\n\n")


def always(data: bytes) -> Handler:
    """A handler that writes the same to everybody."""

    async def handler(body: Mapping[str, Any], write: Write) -> None:
        await write(data)

    return handler


@contextmanager
def sse_server(handler: Handler = answer, models: bytes | None = None) -> Iterator[SseServer]:
    """Serve on a free port; ``models`` is the whole answer to GET /v1/models."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    found = SseServer("")

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def write(data: bytes) -> None:
            writer.write(data)
            await writer.drain()

        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            found.headers.append(head)
            length = re.search(r"content-length: (\d+)", head, re.I)
            if length is None:
                await write(models or whole(MODELS))
            else:
                found.bodies.append(json.loads(await reader.readexactly(int(length[1]))))
                await handler(found.bodies[-1], write)
        writer.close()

    async def start() -> asyncio.Server:
        return await asyncio.start_server(connection, "127.0.0.1", 0)

    async def stop(server: asyncio.Server) -> None:
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    server = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    found.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield found
    finally:
        asyncio.run_coroutine_threadsafe(stop(server), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
