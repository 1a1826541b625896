"""``premoe-retrieval``: settings, adapters, server."""

from __future__ import annotations

import logging

from premoe_servicekit.process import Process, run_process
from premoe_servicekit.server import RpcServer

from premoe_retrieval.adapters.memory import MemoryIndex
from premoe_retrieval.ports import PatternIndex
from premoe_retrieval.repository import PatternRepository
from premoe_retrieval.service import PatternService
from premoe_retrieval.servicer import pattern_service
from premoe_retrieval.settings import RetrievalSettings
from premoe_runtime.formats.errors import Unavailable
from premoe_runtime.storage import open_store

log = logging.getLogger(__name__)


def main() -> None:
    run_process("premoe-retrieval", RetrievalSettings, serve)


async def serve(settings: RetrievalSettings, process: Process) -> None:
    """Serve until a signal."""
    repository = PatternRepository(open_store(settings.store_url), live_refresh_s=settings.live_refresh_s)
    service = PatternService(repository, open_index(settings), on_unknown=settings.on_unknown)
    try:
        server = RpcServer([pattern_service(service)], settings, tls=process.tls)
        await server.start()
        try:
            log.info("indexed %d live pattern sets of %s", await service.rebuild(), settings.store_url)
        except Unavailable as error:
            # Retrieve indexes the live set on demand, so a store that is late is no reason to die.
            log.warning("cannot list live pattern sets yet: %s", error)
        await process.serve([server], address=server.address)
    finally:
        await service.close()


def open_index(settings: RetrievalSettings) -> PatternIndex:
    """The index that the settings name."""
    if settings.index == "memory":
        return MemoryIndex()
    # Imported here: the client costs half a second and is not needed for the other index.
    from premoe_retrieval.adapters.qdrant import QdrantIndex

    api_key = settings.qdrant_api_key.get_secret_value()
    return QdrantIndex(settings.qdrant, timeout_s=settings.qdrant_timeout_s, api_key=api_key or None)
