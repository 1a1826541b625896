"""A gateway over HTTP with scripted gRPC servers behind, and the real openai client in front of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import openai
from premoe_gateway.adapters.retrieval import GrpcRetrieval
from premoe_gateway.adapters.worker import GrpcWorker
from premoe_gateway.http.app import create_app
from premoe_gateway.http.protocol import ClientBounds
from premoe_gateway.http.server import HttpServer
from premoe_gateway.service import Gateway
from premoe_servicekit.clients import channel

from premoe_runtime.formats.choices import OnUnknown
from support.fake_worker import FakeRetrieval, FakeWorker, serving


@asynccontextmanager
async def gateway(
    *workers: FakeWorker,
    retrieval: FakeRetrieval | None = None,
    healthy: tuple[bool, ...] = (),
    on_unknown: OnUnknown | None = None,
    timeout_s: float = 30.0,
    without_retrieval: bool = False,
    bounds: ClientBounds = ClientBounds(),
    **app: Any,
) -> AsyncIterator[str]:
    """The URL of a gateway over these workers."""
    async with AsyncExitStack() as stack:
        clients = []
        for index, worker in enumerate(workers):
            server = await stack.enter_async_context(serving(worker, healthy=(*healthy, True, True)[index]))
            clients.append(GrpcWorker(server.address, await stack.enter_async_context(channel(server.address))))
        client = None
        if not without_retrieval:
            server = await stack.enter_async_context(serving(retrieval or FakeRetrieval()))
            client = GrpcRetrieval(server.address, await stack.enter_async_context(channel(server.address)))
        service = Gateway(clients, client, on_unknown=on_unknown, timeout_s=timeout_s)
        await service.refresh()
        http = HttpServer(create_app(service, **app), host="127.0.0.1", port=0, grace_s=1, bounds=bounds)
        yield await http.start()
        force = asyncio.Event()
        force.set()
        await http.stop(force)


@asynccontextmanager
async def client(url: str, key: str = "none") -> AsyncIterator[openai.AsyncOpenAI]:
    """The real package, which asks once."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as opened:
        yield opened
