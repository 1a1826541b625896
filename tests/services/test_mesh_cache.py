"""The expert store's cache on one machine: workers open its files, and it goes with the mesh."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from premoe_local.mesh import Mesh
from support.mesh import ALPHABETS, mesh_over, prompts
from support.metrics import scrape

from premoe_runtime.packs.reader import open_pack

pytestmark = pytest.mark.timeout(300)  # every mesh is four processes, and a worker imports torch


def ask(mesh: Mesh, prompt: str) -> None:
    body = {"model": mesh.model_name, "messages": [{"role": "user", "content": prompt}], "max_tokens": 2}
    httpx.post(f"{mesh.url}/v1/chat/completions", json=body, timeout=60).raise_for_status()


def cache_of(mesh: Mesh) -> Path:
    """The folder that the store holds open."""
    files = [Path(file.path) for file in psutil.Process(mesh.store.pid).open_files()]
    (ledger,) = [file for file in files if file.name == "premoe-cache"]
    return ledger.parent


def blobs_in(cache: Path) -> Iterator[Path]:
    return (path for path in (cache / "blobs").rglob("*") if path.is_file())


def test_what_was_fetched_once_is_opened_in_the_cache_from_then_on(store_url: str) -> None:
    """The host tier holds next to nothing, so experts of a task are fetched each time that its turn comes."""
    manifest = open_pack(store_url).manifest()
    with mesh_over(store_url, host_memory_bytes=8 * manifest.layout.blob_bytes) as mesh:
        cache = cache_of(mesh)
        for seed in range(3):
            for task in ALPHABETS:
                ask(mesh, prompts(task, 1, seed=seed)[0])
        worker, store = scrape(mesh.metrics["worker"]), scrape(mesh.metrics["store"])
        assert worker.value("premoe:fetched_bytes_total", scheme="file", tier="node") > 0
        read = store.value("premoe:store_read_bytes_total", source="object")
        # Everything comes out of object storage at most once.
        assert 0 < read <= manifest.experts_bytes
        names = {path.name for path in blobs_in(cache)}
        assert names <= {digest for layer in manifest.layers for digest in layer.digests}
        assert sum(path.stat().st_size for path in blobs_in(cache)) <= manifest.experts_bytes
    assert not cache.exists()


def test_the_cache_is_as_small_as_it_is_told_to_be(store_url: str) -> None:
    manifest = open_pack(store_url).manifest()
    limit = 3 * manifest.layout.blob_bytes
    with mesh_over(store_url, cache_bytes=limit) as mesh:
        cache = cache_of(mesh)
        for task in ALPHABETS:
            ask(mesh, prompts(task, 1)[0])
        assert sum(path.stat().st_size for path in blobs_in(cache)) <= limit
    assert not cache.exists()
