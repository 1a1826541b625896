"""What the processes of a one-machine mesh are told."""

from __future__ import annotations

from dataclasses import replace

import pytest
from premoe_local.mesh_options import MeshOptions, store_flags, worker_flags
from support.blob_pack import write_blob_pack

from premoe_runtime.storage import open_store

OPTIONS = MeshOptions(model="file:///store", budget="2/4")
MANIFEST = write_blob_pack(open_store("memory://mesh-options")).manifest


def told(flags: list[str]) -> dict[str, str]:
    return dict(zip(flags[::2], flags[1::2], strict=True))


@pytest.mark.parametrize("free_bytes", [0, 1 << 10, 1 << 40])
def test_the_cache_holds_all_experts_within_a_quarter_of_free_memory(free_bytes: int) -> None:
    flags = told(store_flags(OPTIONS, MANIFEST, "file:///store", free_bytes))
    assert int(flags["--cache-bytes"]) == max(1, min(MANIFEST.experts_bytes, free_bytes // 4))
    assert (flags["--store-url"], flags["--http-port"]) == ("file:///store", "0")


def test_a_size_that_is_named_is_taken() -> None:
    options = replace(OPTIONS, cache_bytes=12345)
    assert told(store_flags(options, MANIFEST, "file:///store", 0))["--cache-bytes"] == "12345"


def test_store_and_workers_have_the_same_redis() -> None:
    options = replace(OPTIONS, redis_url="redis://127.0.0.1:6379")
    for flags in (store_flags(options, MANIFEST, "file:///store", 0), worker_flags(options, MANIFEST, "a:1", "b:2")):
        assert told(flags)["--redis-url"] == "redis://127.0.0.1:6379"
    for flags in (store_flags(OPTIONS, MANIFEST, "file:///store", 0), worker_flags(OPTIONS, MANIFEST, "a:1", "b:2")):
        assert "--redis-url" not in flags
