"""``premoe-retrieval``: settings, adapters, server."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from pathlib import Path

from premoe_servicekit.process import Process, run_process
from premoe_servicekit.server import RpcServer

from premoe_retrieval.adapters.memory import MemoryIndex
from premoe_retrieval.metrics import RetrievalMetrics
from premoe_retrieval.ports import PatternIndex
from premoe_retrieval.recorder import Recorder
from premoe_retrieval.repository import PatternRepository
from premoe_retrieval.service import PatternService
from premoe_retrieval.servicer import pattern_service
from premoe_retrieval.settings import RetrievalSettings
from premoe_runtime.formats.errors import PremoeError, Unavailable
from premoe_runtime.storage import open_store

log = logging.getLogger(__name__)


def main() -> None:
    run_process("premoe-retrieval", RetrievalSettings, serve)


async def serve(settings: RetrievalSettings, process: Process) -> None:
    """Serve until a signal."""
    repository = PatternRepository(open_store(settings.store_url), live_refresh_s=settings.live_refresh_s)
    recorder = Recorder(settings.record_signatures)
    service = PatternService(repository, open_index(settings), on_unknown=settings.on_unknown, recorder=recorder)
    metrics = RetrievalMetrics(process.metrics)
    looking = asyncio.create_task(look_for_stale(service, metrics, settings.stale_check_s))
    try:
        server = RpcServer([pattern_service(service, metrics)], settings, tls=process.tls)
        await server.start()
        try:
            log.info("indexed %d live pattern sets of %s", await service.rebuild(), settings.store_url)
        except Unavailable as error:
            # Retrieve indexes the live set on demand, so a store that is late is no reason to die.
            log.warning("cannot list live pattern sets yet: %s", error)
        await process.serve([server], address=server.address)
    finally:
        looking.cancel()
        await service.close()


async def look_for_stale(service: PatternService, metrics: RetrievalMetrics, every_s: float) -> None:
    """Count stale live sets again and again. A store that does not answer is said where its answer is missed."""
    while True:
        with suppress(PremoeError):
            metrics.found_stale(len(await service.find_stale()))
        await asyncio.sleep(every_s)


def open_index(settings: RetrievalSettings) -> PatternIndex:
    """The index that the settings name; the plain matrix, which answers the same, where the embedded one cannot be."""
    if settings.index == "memory":
        return MemoryIndex()
    if settings.is_server:
        # Imported here: the client costs half a second, which only those wait for who need it.
        from premoe_retrieval.adapters.qdrant import QdrantIndex

        api_key = settings.qdrant_api_key.get_secret_value()
        return QdrantIndex(settings.qdrant, timeout_s=settings.qdrant_timeout_s, api_key=api_key or None)
    try:
        from premoe_retrieval.adapters.edge import EdgeIndex

        return EdgeIndex(Path(settings.qdrant) if settings.qdrant else None)
    except ImportError as error:
        log.warning("Qdrant's engine is not to be had here, so the index is a plain matrix in memory: %s", error)
    except PremoeError as error:
        if settings.qdrant:
            raise
        log.warning("there is no place for an embedded Qdrant, so the index is a plain matrix in memory: %s", error)
    return MemoryIndex()
