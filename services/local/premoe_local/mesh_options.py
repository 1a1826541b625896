"""What a one-machine mesh is to be, and what a worker of it is told of that."""

from __future__ import annotations

import os
from dataclasses import dataclass

from premoe_runtime.formats.choices import Allocation, EngineName, OnUnknown
from premoe_runtime.formats.manifest import Manifest

_CACHE_SHARE = 4
"""One part in so many of free memory, as of a worker's host tier."""


@dataclass(frozen=True, slots=True)
class MeshOptions:
    """What to start. Empty strings and None leave a setting to the process it belongs to."""

    model: str
    """Pack URL, or a store root that holds exactly one pack."""
    budget: str
    allocation: Allocation = "shared"
    slots: int | None = None
    spare: int = 2
    generalist_budget: str = ""
    on_unknown: OnUnknown = "generalist"
    deny: tuple[str, ...] = ()
    """Tasks whose own experts no request gets."""
    host: str = "127.0.0.1"
    port: int = 0
    """Port of the HTTP API; 0 takes a free one."""
    workers: int = 1
    threads: int | None = None
    device: str = "cpu"
    engine: EngineName = "hf"
    engine_arguments: str = ""
    """vLLM's own, a JSON object."""
    context_length: int | None = None
    max_sequences: int | None = None
    host_memory_bytes: int | None = None
    cache_bytes: int | None = None
    """For blobs beside the store, in files that workers read; None: all experts, within a quarter of free memory."""
    model_name: str = ""
    qdrant_url: str = ""
    redis_url: str = ""
    record_signatures: int = 0
    """Signatures of requests to keep, for trying other pattern sets on them."""
    metrics: bool = False
    """Whether every process serves its metrics, each on a free port of its own."""
    cors_origins: tuple[str, ...] = ()
    """Origins of web pages that may call the HTTP API from a browser."""
    keys_file: str = ""
    """API keys that the HTTP API asks for; empty: none."""
    max_body_bytes: int | None = None
    """Largest body of an HTTP request."""
    console: bool = True
    """Whether the gateway serves its page for people."""
    log_level: str = "info"


def store_flags(options: MeshOptions, manifest: Manifest, root: str, free_bytes: int) -> list[str]:
    """Flags of the expert store over the store ``root``; ``free_bytes`` of main memory are left.

    Its cache is a folder of its own, in memory or where temporary files lie, which goes with the process. Workers open
    the files in it, and read what is still arriving over HTTP.
    """
    cache_bytes = options.cache_bytes
    if cache_bytes is None:
        cache_bytes = max(1, min(manifest.experts_bytes, free_bytes // _CACHE_SHARE))
    redis = ("--redis-url", options.redis_url) if options.redis_url else ()
    return ["--store-url", root, "--cache-bytes", str(cache_bytes), "--http-port", "0", *redis]


def worker_flags(options: MeshOptions, manifest: Manifest, store: str, retrieval: str) -> list[str]:
    """Flags of a worker; what is not given is left to the worker's own defaults."""
    values: dict[str, object] = {
        "store": store,
        "retrieval": retrieval,
        "redis-url": options.redis_url,
        "model-id": manifest.model_id,
        "model-name": options.model_name,
        "budget": options.budget,
        "allocation": options.allocation,
        "slots": options.slots,
        "spare": options.spare,
        "generalist-budget": options.generalist_budget,
        "on-unknown": options.on_unknown,
        "deny": ",".join(options.deny),
        "host-memory-bytes": options.host_memory_bytes,
        "max-sequences": options.max_sequences,
        "context-length": options.context_length,
        "threads": options.threads,
        "device": options.device,
        "engine": options.engine,
        "engine-arguments": options.engine_arguments,
    }
    given = {name: value for name, value in values.items() if value not in (None, "")}
    return [part for name, value in given.items() for part in (f"--{name}", str(value))]


def worker_environment(options: MeshOptions) -> dict[str, str]:
    """What a worker needs of its environment, where ours does not say otherwise."""
    wanted = {
        # Idle OpenMP threads sleep instead of spinning: the mesh's other processes need the same cores.
        "OMP_WAIT_POLICY": "PASSIVE",
        # glibc writes past the cache only in huge copies; a swap is many copies of a few MiB that nobody reads soon.
        "GLIBC_TUNABLES": "glibc.cpu.x86_non_temporal_threshold=131072",
    }
    environment = {name: value for name, value in wanted.items() if name not in os.environ}
    if options.threads is not None:
        environment["OMP_NUM_THREADS"] = str(options.threads)
    return environment
