"""Caches that are far too small, shared and filled by many at once: right bytes, and the bound holds."""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from premoe_expert_store.cache import NodeCache, given_folder
from premoe_expert_store.cache.folder import LEDGER
from premoe_expert_store.catalogue import Catalogue, Pack
from premoe_expert_store.shelf import Shelf
from support.blob_pack import BlobPack, write_blob_pack
from support.gated_store import GatedStore

from premoe_runtime.formats.ids import ExpertId

BLOB = 64 << 10
EXPERTS = [ExpertId(layer, expert) for layer in range(4) for expert in range(16)]


@pytest.fixture
def store(tmp_path: Path) -> GatedStore:
    return GatedStore(tmp_path / "store")


@pytest.fixture
def blobs(store: GatedStore) -> BlobPack:
    return write_blob_pack(store, layers=4, experts=16, blob_bytes=BLOB)


def made(store: GatedStore, folder: Path, room: int, memory: int = 64) -> Shelf:
    return Shelf(
        store,
        NodeCache(given_folder(folder), room * BLOB),
        threads=4,
        memory_bytes=memory * BLOB,
        scrub_bytes_s=0,
        linger_s=0.0,
    )


def sizes(folder: Path) -> Iterator[int]:
    for below in ("blobs", "arriving"):
        for place, _, names in os.walk(folder / below):
            for name in names:
                with suppress(FileNotFoundError):
                    yield os.stat(os.path.join(place, name)).st_size


async def reader(shelf: Shelf, pack: Pack, blobs: BlobPack, seed: int, count: int) -> None:
    source = random.Random(seed)
    for _ in range(count):
        expert = source.choice(EXPERTS)
        async with shelf.hold(pack, expert, recheck=source.random() < 0.3) as blob:
            if source.random() < 0.2:
                continue  # leaves at once
            await blob.landed(BLOB)
            assert await asyncio.to_thread(blob.read, 0, BLOB) == blobs.blobs[expert]
            if source.random() < 0.1:
                shelf.prefetch(pack, source.sample(EXPERTS, 3))


def taken(folder: Path) -> int:
    """Bytes of a folder that nobody changes meanwhile: files are listed one after another."""
    with (folder / LEDGER).open() as ledger:
        fcntl.flock(ledger, fcntl.LOCK_EX)
        return sum(sizes(folder))


async def watcher(folder: Path, limit: int) -> None:
    while True:
        assert await asyncio.to_thread(taken, folder) <= limit
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("room", [1, 3, 20])
async def test_readers_of_a_small_cache(store: GatedStore, blobs: BlobPack, tmp_path: Path, room: int) -> None:
    folder = tmp_path / "cache"
    pack = await Catalogue(store).pack("")
    before = len(os.listdir("/proc/self/fd"))
    shelf = made(store, folder, room)
    watching = asyncio.create_task(watcher(folder, room * BLOB))
    await asyncio.gather(*(reader(shelf, pack, blobs, seed, 40) for seed in range(8)))
    assert not watching.done()
    watching.cancel()
    await asyncio.wait([watching])
    await shelf.close()
    assert shelf.held == 0
    assert shelf.memory_free_bytes == 64 * BLOB
    assert sum(sizes(folder)) <= room * BLOB
    again = NodeCache(given_folder(folder), room * BLOB)
    assert again.num_bytes == sum(sizes(folder)), "the ledger knows what lies there"
    again.close()
    assert len(os.listdir("/proc/self/fd")) <= before


async def test_two_stores_of_a_node_share_a_small_cache(store: GatedStore, blobs: BlobPack, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    shelves = [made(store, folder, 6) for _ in range(2)]
    pack = await Catalogue(store).pack("")
    watching = asyncio.create_task(watcher(folder, 6 * BLOB))
    await asyncio.gather(*(reader(shelves[seed % 2], pack, blobs, seed, 40) for seed in range(6)))
    assert not watching.done()
    watching.cancel()
    await asyncio.wait([watching])
    for shelf in shelves:
        await shelf.close()
    again = NodeCache(given_folder(folder), 6 * BLOB)
    assert again.num_bytes == sum(sizes(folder)) <= 6 * BLOB
    again.close()


async def test_readers_while_the_disk_is_full(
    store: GatedStore, blobs: BlobPack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, allocate = tmp_path / "cache", os.posix_fallocate

    def fallocate(fd: int, offset: int, length: int) -> None:
        on_disk = os.readlink(f"/proc/self/fd/{fd}").startswith(str(folder))
        if on_disk and sum(sizes(folder)) + length > 3 * BLOB:
            raise OSError(28, "No space left on device")
        allocate(fd, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    shelf = made(store, folder, 1000)
    pack = await Catalogue(store).pack("")
    await asyncio.gather(*(reader(shelf, pack, blobs, seed, 30) for seed in range(6)))
    await shelf.close()
    assert sum(sizes(folder)) <= 3 * BLOB
