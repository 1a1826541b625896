"""The `premoe-worker` process: settings, clients, model, servers."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack

from premoe_servicekit.clients import blocking_channel, channel
from premoe_servicekit.process import Process, run_process
from premoe_servicekit.server import RpcServer, check_port_is_free

from premoe_runtime.formats.manifest import Manifest
from premoe_worker.adapters.expert_store import GrpcExpertSource
from premoe_worker.adapters.retrieval import GrpcRetrieval
from premoe_worker.limits import Limits, check_limits, model_name
from premoe_worker.settings import WorkerSettings

log = logging.getLogger(__name__)


def main() -> None:
    """Entry point."""
    run_process("premoe-worker", WorkerSettings, serve)


async def serve(settings: WorkerSettings, process: Process) -> None:
    """Check, load, prove one forward, then serve until a signal."""
    check_port_is_free(settings.host, settings.port)
    check_port_is_free(settings.admin_host, settings.admin_port)
    async with AsyncExitStack() as stack:
        source = GrpcExpertSource(
            settings.store, stack.enter_context(blocking_channel(settings.store)), model_id=settings.model_id
        )
        manifest = await asyncio.to_thread(source.manifest)
        limits = _limits(settings, manifest)
        retrieval = None
        if settings.retrieval:
            client = await stack.enter_async_context(channel(settings.retrieval))
            retrieval = GrpcRetrieval(settings.retrieval, client)
        await _serve_model(settings, process, source, limits, retrieval, stack)


async def _serve_model(
    settings: WorkerSettings,
    process: Process,
    source: GrpcExpertSource,
    limits: Limits,
    retrieval: GrpcRetrieval | None,
    stack: AsyncExitStack,
) -> None:
    # Imported here: torch and transformers take seconds, and a wrong budget should be told at once.
    from premoe_worker.model import load_model
    from premoe_worker.service import Worker
    from premoe_worker.servicer import admin_service, worker_service

    model = await asyncio.to_thread(load_model, source, limits, settings)
    stack.push_async_callback(asyncio.to_thread, model.close)
    name = model_name(model.manifest, settings.model_name)
    worker = Worker(model, retrieval, limits, name=name, max_tokens=settings.max_tokens)
    server = RpcServer([worker_service(worker)], settings)

    async def draining() -> None:
        await server.set_serving(False)

    admin_settings = settings.model_copy(update={"host": settings.admin_host})
    admin = RpcServer(
        [admin_service(worker, draining, drain_s=settings.drain_s)], admin_settings, port=settings.admin_port
    )
    await worker.verify()
    log.info("serving %s: budget %s, %d slots a layer", name, limits.budget, limits.slots)
    await server.start()
    await admin.start()
    await process.serve([server, admin], address=server.address, admin=admin.address, model=name)


def _limits(settings: WorkerSettings, manifest: Manifest) -> Limits:
    return check_limits(
        manifest,
        budget=settings.budget,
        generalist_budget=settings.generalist_budget,
        slots=settings.slots,
        spare=settings.spare,
        on_unknown=settings.on_unknown,
    )


if __name__ == "__main__":
    main()
