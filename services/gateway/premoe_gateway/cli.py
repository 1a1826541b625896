"""The `premoe-gateway` process: settings, clients, HTTP and health."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import AsyncExitStack

from premoe_servicekit.clients import channel
from premoe_servicekit.process import Process, run_process
from premoe_servicekit.server import RpcServer

from premoe_gateway.adapters.retrieval import GrpcRetrieval
from premoe_gateway.adapters.worker import GrpcWorker
from premoe_gateway.http import create_app
from premoe_gateway.http_server import HttpServer
from premoe_gateway.service import Gateway
from premoe_gateway.settings import GatewaySettings


def main() -> None:
    """Entry point."""
    run_process("premoe-gateway", GatewaySettings, serve)


async def serve(settings: GatewaySettings, process: Process) -> None:
    """Serve until a signal."""
    async with AsyncExitStack() as stack:
        gateway = await _gateway(settings, stack)
        http = HttpServer(
            create_app(gateway),
            host=settings.http_host,
            port=settings.http_port,
            grace_s=settings.grace_s,
            log_level=settings.log_level,
        )
        rpc = RpcServer([], settings)
        await http.start()
        stack.push_async_callback(http.stop, process.forced)
        await rpc.start()
        watching = asyncio.create_task(_watch(gateway, rpc, settings.poll_s))
        stack.push_async_callback(_end, watching)
        await process.serve([rpc], address=rpc.address, url=http.url)


async def _gateway(settings: GatewaySettings, stack: AsyncExitStack) -> Gateway:
    workers = []
    for address in settings.workers:
        workers.append(GrpcWorker(address, await stack.enter_async_context(channel(address))))
    retrieval = None
    if settings.retrieval:
        retrieval = GrpcRetrieval(settings.retrieval, await stack.enter_async_context(channel(settings.retrieval)))
    return Gateway(workers, retrieval, on_unknown=settings.on_unknown or None, timeout_s=settings.request_timeout_s)


async def _watch(gateway: Gateway, rpc: RpcServer, poll_s: float) -> None:
    """Keep the workers' states fresh; health is SERVING while one of them serves."""
    while True:
        await gateway.refresh()
        await rpc.set_serving(bool(gateway.healthy()))
        await asyncio.sleep(poll_s)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


if __name__ == "__main__":
    main()
