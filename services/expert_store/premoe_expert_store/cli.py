"""``premoe-expert-store``: settings, adapters, server."""

from __future__ import annotations

import logging

from premoe_servicekit.process import Process, run_process
from premoe_servicekit.server import RpcServer

from premoe_expert_store.breaker import GuardedCache
from premoe_expert_store.cache import NodeCache, private_folder
from premoe_expert_store.catalogue import Catalogue
from premoe_expert_store.leases import Leases
from premoe_expert_store.metrics import StoreMetrics
from premoe_expert_store.service import ExpertStore
from premoe_expert_store.servicer import expert_store_service
from premoe_expert_store.settings import ExpertStoreSettings
from premoe_expert_store.shelf import Shelf
from premoe_runtime.storage import open_store

log = logging.getLogger(__name__)


def main() -> None:
    run_process("premoe-expert-store", ExpertStoreSettings, serve)


async def serve(settings: ExpertStoreSettings, process: Process) -> None:
    """Serve until a signal."""
    cache = open_cache(settings)
    metrics = StoreMetrics(process.metrics)
    metrics.show(lambda: cache is None or cache.available)
    service = build(settings, cache, metrics)
    try:
        server = RpcServer([expert_store_service(service, metrics)], settings, tls=process.tls)
        await server.start()
        await process.serve([server], address=server.address)
    finally:
        await service.close()
        if cache is not None:
            cache.close()


def build(settings: ExpertStoreSettings, cache: GuardedCache | None, metrics: StoreMetrics) -> ExpertStore:
    """The service over the object store that the settings name. Raises InvalidInput on a bad URL."""
    store = open_store(settings.store_url)
    leases = Leases(settings.lease_s)
    node = NodeCache(private_folder(settings.cache_bytes), settings.cache_bytes, leased=leases.holds)
    shelf = Shelf(
        store,
        node,
        cache,
        threads=settings.threads,
        memory_bytes=settings.memory_bytes,
        leases=leases,
        metrics=metrics,
    )
    return ExpertStore(Catalogue(store), shelf, window_bytes=settings.window_bytes, lease_s=settings.lease_s)


def open_cache(settings: ExpertStoreSettings) -> GuardedCache | None:
    """The cache that the settings name, or none. Raises InvalidInput on a bad URL."""
    if settings.redis_url is None:
        return None
    # Imported here: without a cache the client is not needed, nor installed by every image.
    from premoe_dataplane.redis_cache import RedisCache

    redis = RedisCache(settings.redis_url, timeout_s=settings.redis_timeout_s, connections=settings.threads)
    return GuardedCache(redis, cool_down_s=settings.redis_cool_down_s)
