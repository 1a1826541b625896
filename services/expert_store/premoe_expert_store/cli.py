"""``premoe-expert-store``: settings, adapters, servers."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from premoe_dataplane.signing import Signer, keys_of
from premoe_servicekit.process import Process, run_process
from premoe_servicekit.server import RpcServer

from premoe_expert_store.breaker import GuardedCache
from premoe_expert_store.cache import NodeCache, given_folder, private_folder
from premoe_expert_store.catalogue import Catalogue
from premoe_expert_store.filling.claims import Claims
from premoe_expert_store.http.door import ByteDoor, open_door
from premoe_expert_store.leases import Leases
from premoe_expert_store.metrics import StoreMetrics
from premoe_expert_store.service import ExpertStore
from premoe_expert_store.servicer import expert_store_service
from premoe_expert_store.settings import ExpertStoreSettings
from premoe_expert_store.shelf import Shelf
from premoe_expert_store.sources import Ways
from premoe_runtime.storage import open_store


def main() -> None:
    run_process("premoe-expert-store", ExpertStoreSettings, serve)


async def serve(settings: ExpertStoreSettings, process: Process) -> None:
    """Serve until a signal."""
    metrics = StoreMetrics(process.metrics)
    async with AsyncExitStack() as stack:
        parts = build(settings, metrics)
        stack.push_async_callback(parts.close)
        signer = Signer(keys_of(Path(settings.url_key) if settings.url_key else None))
        door = await open_door(settings, process.tls, parts.shelf, parts.catalogue, signer, metrics)
        fields: dict[str, str] = {}
        if door is not None:
            stack.push_async_callback(door.stop, 0.0)  # for a start that fails
            fields["http"] = door.address
        store = ExpertStore(parts.catalogue, parts.shelf, parts.ways(signer, door), window_bytes=settings.window_bytes)
        server = RpcServer([expert_store_service(store, metrics, process.stopped)], settings, tls=process.tls)
        await server.start()
        beside = [] if door is None else [door]
        await process.serve([server], serving=True, beside=beside, address=server.address, **fields)


@dataclass(frozen=True, slots=True)
class Parts:
    """What serves blobs, below the ports."""

    catalogue: Catalogue
    shelf: Shelf
    redis: GuardedCache | None
    claims: Claims | None

    def ways(self, signer: Signer, door: ByteDoor | None) -> Ways:
        """What Resolve may name."""
        cache, redis = self.shelf.cache.folder, self.redis is not None
        if door is None:
            return Ways(signer, cache=cache, redis=redis)
        return Ways(signer, door.base, door.peers.home, cache, redis)

    async def close(self) -> None:
        await self.shelf.close()
        if self.redis is not None:
            self.redis.close()
        if self.claims is not None:
            self.claims.close()


def build(settings: ExpertStoreSettings, metrics: StoreMetrics) -> Parts:
    """The shelf over the stores that the settings name. Raises InvalidInput for a bad URL or folder."""
    store = open_store(settings.store_url)
    redis, claims = open_redis(settings)
    metrics.show(lambda: redis is None or redis.available)
    leases = Leases(settings.lease_s)
    folder = given_folder(Path(settings.cache_dir)) if settings.cache_dir else private_folder(settings.cache_bytes)
    shelf = Shelf(
        store,
        NodeCache(folder, settings.cache_bytes, leased=leases.holds),
        redis,
        claims=claims,
        threads=settings.threads,
        memory_bytes=settings.memory_bytes,
        leases=leases,
        metrics=metrics,
        scrub_bytes_s=settings.scrub_bytes_s,
    )
    return Parts(Catalogue(store), shelf, redis, claims)


def open_redis(settings: ExpertStoreSettings) -> tuple[GuardedCache | None, Claims | None]:
    """The cache that the settings name, and the claims in it, or none. Raises InvalidInput on a bad URL."""
    if settings.redis_url is None:
        return None, None
    # Imported here: without a cache the client is not needed, nor installed by every image.
    from premoe_dataplane.redis_cache import RedisCache

    from premoe_expert_store.filling.claims import RedisClaims

    redis = RedisCache(settings.redis_url, timeout_s=settings.redis_timeout_s, connections=settings.threads)
    cache = GuardedCache(redis, cool_down_s=settings.redis_cool_down_s, writes=settings.redis_write)
    if not settings.redis_write:
        return cache, None  # whoever waits for another replica's claim waits for what that one writes
    return cache, RedisClaims(settings.redis_url, timeout_s=settings.redis_timeout_s)
