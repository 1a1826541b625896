"""The `premoe-gateway` process: settings, clients, HTTP and health."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from contextlib import AsyncExitStack
from pathlib import Path

from premoe_servicekit.addresses import is_loopback
from premoe_servicekit.clients import channel
from premoe_servicekit.process import Process, run_process
from premoe_servicekit.server import RpcServer
from starlette.routing import Route

from premoe_gateway.access.keyring import Keyring
from premoe_gateway.adapters.retrieval import GrpcRetrieval
from premoe_gateway.console.routes import Console
from premoe_gateway.http.app import create_app
from premoe_gateway.http.certificate import certificate_of
from premoe_gateway.http.protocol import ClientBounds
from premoe_gateway.http.server import HttpServer
from premoe_gateway.metrics import GatewayMetrics
from premoe_gateway.pool import WorkerPool
from premoe_gateway.search.executor import Searcher
from premoe_gateway.search.verifiers.named import NamedVerifiers
from premoe_gateway.search.verifiers.opening import Verifiers
from premoe_gateway.service import Gateway
from premoe_gateway.settings import GatewaySettings
from premoe_gateway.targets import Published, Targets

log = logging.getLogger(__name__)


def main() -> None:
    """Entry point."""
    run_process("premoe-gateway", GatewaySettings, serve)


async def serve(settings: GatewaySettings, process: Process) -> None:
    """Serve until a signal."""
    async with AsyncExitStack() as stack:
        gateway = Gateway(
            (),
            await _retrieval(settings, process, stack),
            on_unknown=settings.on_unknown or None,
            timeout_s=settings.request_timeout_s,
        )
        published = Published(Path(settings.workers_file)) if settings.workers_file else None
        targets = Targets(settings.workers, published)
        pool = WorkerPool(
            gateway,
            targets,
            lambda endpoint: channel(endpoint.address, tls=process.tls, server_name=endpoint.server_name),
        )
        stack.push_async_callback(pool.close)
        await pool.update()
        keyring = Keyring(Path(settings.keys_file)) if settings.keys_file else None
        if keyring is None and not is_loopback(settings.http_host):
            log.warning("everybody who reaches %s may use the models: no --keys-file is given", settings.http_host)
        verifiers = Verifiers(NamedVerifiers(Path(settings.verifiers_file) if settings.verifiers_file else None))
        stack.push_async_callback(verifiers.close)
        searcher = Searcher(gateway, verifiers, most=settings.search_answers, timeout_s=settings.request_timeout_s)
        app = create_app(
            gateway,
            searcher=searcher,
            max_body_bytes=settings.max_body_bytes,
            cors_origins=settings.cors_origins,
            keyring=keyring,
            console=Console(gateway, settings.poll_s) if settings.console else None,
        )
        metrics = GatewayMetrics(process.metrics, [route.path for route in app.routes if isinstance(route, Route)])
        metrics.show(gateway)
        metrics.show_keys(keyring)
        http = HttpServer(
            metrics.around(app),
            host=settings.http_host,
            port=settings.http_port,
            grace_s=settings.grace_s,
            log_level=settings.log_level,
            keep_alive_s=settings.keep_alive_s,
            certificate=certificate_of(settings.http_tls_cert, settings.http_tls_key),
            bounds=ClientBounds(settings.receive_timeout_s, settings.send_timeout_s, settings.max_connections),
        )

        async def cut() -> None:
            gateway.stop()
            await pool.close()

        rpc = RpcServer([], settings, tls=process.tls)
        await http.start()
        stack.push_async_callback(http.stop, process.forced, cut)
        await rpc.start()
        watching = asyncio.create_task(_watch(gateway, rpc, settings.poll_s, always=not targets.are_fixed))
        stack.push_async_callback(_end, watching)
        following = asyncio.create_task(pool.follow(settings.poll_s))
        stack.push_async_callback(_end, following)
        await process.serve([rpc], serving=not targets.are_fixed, address=rpc.address, url=http.url)


async def _retrieval(settings: GatewaySettings, process: Process, stack: AsyncExitStack) -> GrpcRetrieval | None:
    if not settings.retrieval:
        return None
    opened = await stack.enter_async_context(channel(settings.retrieval, tls=process.tls))
    return GrpcRetrieval(settings.retrieval, opened)


async def _watch(gateway: Gateway, rpc: RpcServer, poll_s: float, *, always: bool) -> None:
    """Keep the workers' states fresh. Health is SERVING while one of them serves.

    With ``always`` it is SERVING whatever they do: who looks workers up by name may be installed before there is a
    model, and answers 503 until one comes.
    """
    while True:
        await gateway.refresh()
        await rpc.set_serving(always or bool(gateway.healthy()))
        await asyncio.sleep(poll_s)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


if __name__ == "__main__":
    main()
