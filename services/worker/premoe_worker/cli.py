"""The `premoe-worker` process: settings, clients, model, servers."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import Future
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from premoe_servicekit.clients import channel
from premoe_servicekit.process import Process, run_process
from premoe_servicekit.server import RpcServer, check_port_is_free
from premoe_servicekit.tls import Tls

from premoe_runtime.formats.allocation import slots_text
from premoe_runtime.formats.errors import Unavailable
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.offline.sizing.bill import settled_context
from premoe_runtime.offline.sizing.shape import shape_of
from premoe_worker.adapters.expert_store import GrpcExpertSource, open_source
from premoe_worker.adapters.reading import Reading
from premoe_worker.adapters.retrieval import GrpcRetrieval
from premoe_worker.limits import Limits, check_limits, model_name
from premoe_worker.recommended import recommended_sampling
from premoe_worker.settings import WorkerSettings
from premoe_worker.split import split_slots

log = logging.getLogger(__name__)

_STORE_RETRY_S = 1.0


def main() -> None:
    """Entry point."""
    run_process("premoe-worker", WorkerSettings, serve)


async def serve(settings: WorkerSettings, process: Process) -> None:
    """Check, load, prove one forward, then serve until a signal."""
    check_port_is_free(settings.host, settings.port)
    check_port_is_free(settings.admin_host, settings.admin_port)
    async with AsyncExitStack() as stack:
        tls, reading = _store_tls(settings, process), _reading(settings)
        source = stack.enter_context(open_source(settings.store, tls, settings.model_id, reading))
        manifest = await _manifest(source, settings.store_wait_s)
        limits = _limits(settings, manifest)
        if settings.context_length is not None:
            config = await asyncio.to_thread(source.read_file, "skeleton/config.json")
            settled_context(shape_of(manifest, config), settings.context_length)
        retrieval = None
        if settings.retrieval:
            tls = process.tls and process.tls.expecting(settings.retrieval_server_name)
            client = await stack.enter_async_context(channel(settings.retrieval, tls=tls))
            retrieval = GrpcRetrieval(settings.retrieval, client)
        limits = await split_slots(limits, retrieval, manifest, wait_s=settings.store_wait_s)
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
    from premoe_runtime.engines.hf.device import device_kind
    from premoe_worker.metrics import WorkerMetrics
    from premoe_worker.model import load_model
    from premoe_worker.residency import ResidencyKeeper
    from premoe_worker.service import Worker
    from premoe_worker.servicer import admin_service, worker_service

    device_kind(settings.device)
    opener = partial(open_source, settings.store, _store_tls(settings, process), source.manifest().model_id)
    model = await asyncio.to_thread(load_model, source, opener, limits, settings)
    stack.push_async_callback(asyncio.to_thread, model.close)
    name = model_name(model.manifest, settings.model_name)
    worker = Worker(
        model,
        retrieval,
        limits,
        name=name,
        max_tokens=settings.max_tokens,
        recommended=await asyncio.to_thread(recommended_sampling, source),
        queue_limit=settings.queue_limit,
        deny=settings.deny,
    )
    stack.callback(worker.close)
    keeper = None
    if settings.residency_dir and retrieval is not None:
        keeper = ResidencyKeeper(worker, retrieval, Path(settings.residency_dir))
    metrics = WorkerMetrics(process.metrics, name, (lambda pattern: "") if retrieval is None else retrieval.task)
    metrics.show(model.front)
    metrics.show_fetches(source.fetcher.counts, source.fetcher.breakers)
    service = worker_service(worker, metrics, *([] if keeper is None else [keeper.state]))
    server = RpcServer([service], settings, tls=process.tls)

    async def draining() -> None:
        await server.set_serving(False)

    admin_settings = settings.model_copy(update={"host": settings.admin_host})
    admin = RpcServer(
        [admin_service(worker, draining, drain_s=settings.drain_s)],
        admin_settings,
        port=settings.admin_port,
        tls=process.tls,
    )
    await worker.verify()
    log.info("serving %s: budget %s, %s slots a layer", name, limits.budget, slots_text(limits.slots))
    await server.start()
    await admin.start()
    if keeper is not None:
        await stack.enter_async_context(keeper.running())
    model.front.ended.add_done_callback(partial(_end_with, process, asyncio.get_running_loop()))
    await process.serve([server, admin], address=server.address, admin=admin.address, model=name)


def _end_with(process: Process, loop: asyncio.AbstractEventLoop, ended: Future[BaseException | None]) -> None:
    """Serving has ended; if nobody closed it, the process must not look alive."""
    reason = ended.result()
    if reason is not None and not loop.is_closed():
        error = Unavailable(f"serving ended: {type(reason).__name__}: {reason}; start the worker again", reason="ENDED")
        loop.call_soon_threadsafe(process.fail, error)


async def _manifest(source: GrpcExpertSource, wait_s: float) -> Manifest:
    """The pack's manifest; waits for a store that comes up later than we do. Raises what the source raises."""
    deadline = time.monotonic() + wait_s
    waiting = False
    while True:
        try:
            return await asyncio.to_thread(source.manifest)
        except Unavailable as error:
            if time.monotonic() >= deadline:
                raise
            if not waiting:
                log.warning("waiting for the expert store: %s", error)
            waiting = True
            await asyncio.sleep(_STORE_RETRY_S)


def _store_tls(settings: WorkerSettings, process: Process) -> Tls | None:
    return process.tls and process.tls.expecting(settings.store_server_name)


def _reading(settings: WorkerSettings) -> Reading:
    return Reading(
        redis_url=settings.redis_url,
        object_store_url=settings.object_store_url,
        schemes=settings.schemes,
        background_rate=settings.background_rate_bytes,
    )


def _limits(settings: WorkerSettings, manifest: Manifest) -> Limits:
    return check_limits(
        manifest,
        budget=settings.budget,
        generalist_budget=settings.generalist_budget,
        slots=settings.slots,
        spare=settings.spare,
        on_unknown=settings.on_unknown,
        allocation=settings.allocation,
    )


if __name__ == "__main__":
    main()
