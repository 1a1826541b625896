from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest
from premoe_expert_store import tending
from premoe_expert_store.breaker import GuardedCache
from premoe_expert_store.cache import NodeCache, given_folder
from premoe_expert_store.cache.scrub import Pace, Stopped, look_at_one
from premoe_expert_store.catalogue import Catalogue
from premoe_expert_store.metrics import StoreMetrics
from premoe_expert_store.ports import BlobsInvalid
from premoe_expert_store.shelf import Shelf
from premoe_servicekit.metrics import Metrics
from support.blob_pack import write_blob_pack
from support.gated_store import GatedStore
from support.memory_cache import MemoryCache
from support.metrics import read

from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.formats.pieces import Hole

A = ExpertId(0, 0)


def keep(cache: NodeCache, digest: str, data: bytes) -> None:
    draft = cache.draft(digest, len(data))
    assert draft is not None
    os.pwrite(draft.fd, data, 0)
    cache.keep(draft, digest)
    os.close(draft.fd)


def test_a_wrong_file_is_found_and_dropped(tmp_path: Path) -> None:
    pack = write_blob_pack(GatedStore(tmp_path / "store"))
    cache, pace = NodeCache(given_folder(tmp_path / "cache"), 1 << 20), Pace(1e12)
    assert look_at_one(cache, pace) is None
    right, wrong = (pack.manifest.digest(ExpertId(0, expert)) for expert in range(2))
    keep(cache, right, pack.blobs[A])
    keep(cache, wrong, bytes(8192))
    assert look_at_one(cache, pace, lambda digests: right) is None
    assert look_at_one(cache, pace, lambda digests: wrong) == wrong
    assert cache.digests() == [right]
    cache.close()


def test_a_pace_lets_nobody_wait_for_its_end() -> None:
    pace = Pace(1e-9)
    threading.Timer(0.02, pace.stop).start()
    with pytest.raises(Stopped):
        pace.after(1)


async def test_wrong_copies_that_nobody_asks_for_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tending, "SCRUB_PAUSE_S", 0.005)
    store, redis, metrics = GatedStore(tmp_path / "store"), MemoryCache(1 << 30), Metrics()
    blobs = write_blob_pack(store, layers=1, experts=2)
    cache = NodeCache(given_folder(tmp_path / "cache"), 1 << 20)
    shelf = Shelf(store, cache, GuardedCache(redis), metrics=StoreMetrics(metrics), scrub_bytes_s=1e12)
    pack = await Catalogue(store).pack("")
    events = shelf.watch(pack)
    async with shelf.hold(pack, A) as blob:
        await blob.landed(8192)
    digest = blobs.manifest.digest(A)
    while not cache.holds(digest):  # noqa: ASYNC110  what is waited for tells nobody
        await asyncio.sleep(0.005)
    path = cache.path(digest)
    path.chmod(0o644)
    path.write_bytes(bytes(8192))
    redis.write(digest, memoryview(bytes(8192)), [Hole(0, 8192)])
    left = {BlobsInvalid((A,), "node"), BlobsInvalid((A,), "redis")}
    async for event in events:
        left.discard(event)
        if not left:
            break
    await events.aclose()
    assert not path.exists()
    found = read(metrics)
    assert found.value("premoe:store_wrong_copies_total", tier="node") == 1
    assert found.value("premoe:store_wrong_copies_total", tier="redis") == 1
    await shelf.close()
