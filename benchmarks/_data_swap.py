"""One swap of a GiB as a worker fetches it, and many cold workers at once, over a real expert store."""

from __future__ import annotations

import os
import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from _data_ours import STORE, fill
from _data_servers import RawTcp, in_process
from _data_ways import Blobs, raw_tcp, slot
from _report import Report
from premoe_dataplane.plan import Scheme
from premoe_worker.adapters.expert_store import GrpcExpertSource, open_source
from premoe_worker.adapters.reading import Reading
from support.processes import Child, serving
from support.servers import redis_server, s3_server

from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.storage import open_store

MIB = 1 << 20
WORKERS = 16


def measure_swap(report: Report, disk: Path, memory: Path, rounds: int, num_bytes: int = 16 * MIB) -> None:
    """64 blobs: what the fetcher brings by each scheme alone, digests included, beside as much over raw TCP."""
    (memory / "blobs").mkdir(parents=True)
    blobs = Blobs.make(num_bytes, 64, memory / "blobs", disk)
    rooms = {expert: slot(num_bytes) for expert in blobs.experts}
    total = num_bytes * len(blobs)
    with in_process(RawTcp(blobs.paths)) as (port, _):
        raw = raw_tcp(port)
        reference = [_timed(lambda: raw(range(len(blobs)), list(rooms.values()))) for _ in range(rounds + 1)][1:]
    best = report.samples("1 GiB raw TCP", reference, num_bytes=total)
    flags = [
        "--store-url",
        blobs.url,
        "--cache-dir",
        str(memory / "cache"),
        "--cache-bytes",
        str(2 * total),
        "--http-port",
        "0",
    ]
    with redis_server(disk) as redis, serving(STORE, [*flags, "--redis-url", redis.url]) as store:
        fill(redis.url, blobs)
        with _source(store, blobs, "grpc", "") as source:
            source.fetch(blobs.experts, rooms.__getitem__, _ignore)  # into the store's cache
        for scheme in ("file", "http", "redis", "grpc"):
            with _source(store, blobs, scheme, redis.url) as source:
                source.fetch(blobs.experts, rooms.__getitem__, _ignore)
                before = _cpu_s(store.process.pid, redis.process.pid)
                seconds = [
                    _timed(lambda: source.fetch(blobs.experts, rooms.__getitem__, _ignore)) for _ in range(rounds)
                ]
                cpu_s = _cpu_s(store.process.pid, redis.process.pid) - before
            median = report.samples(f"1 GiB {scheme}", seconds, num_bytes=total)
            report.values[f"1 GiB {scheme}"] |= {
                "over": f"{best / median:.2f} raw TCP",
                "cpu_s_per_gb": cpu_s / (rounds * total / 1e9),
            }


def measure_cold(report: Report, disk: Path, num_bytes: int = 2 * MIB, count: int = 64) -> None:
    """Workers that all want one set at once, from S3: what the store reads of it for all of them."""
    disk.mkdir()
    with s3_server(disk) as s3:
        os.environ |= s3.env
        os.environ.pop("AWS_SKIP_SIGNATURE", None)
        (disk / "memory").mkdir()
        blobs = Blobs.make(num_bytes, count, disk / "memory", disk / "pack")
        _upload(disk / "pack", s3.url)
        flags = ["--store-url", s3.url, "--http-port", "0", "--metrics-port", "0"]
        with serving(STORE, flags, s3.env) as store:
            seconds = _timed(lambda: _all_at_once(store, blobs))
            read = object_bytes(str(store.ready["metrics"]))
    report.values[f"{WORKERS} cold workers"] = {
        "wanted_mib": num_bytes * count / MIB,
        "read_over_wanted": read / (num_bytes * count),
        "seconds": seconds,
        "wanted": 1.05,
    }


def _all_at_once(store: Child, blobs: Blobs) -> None:
    gate = threading.Barrier(WORKERS)
    faults: list[Exception] = []

    def work() -> None:
        rooms = {expert: memoryview(bytearray(blobs.num_bytes)) for expert in blobs.experts}
        with _source(store, blobs, "http", "") as source:
            source.manifest()
            gate.wait()
            try:
                source.fetch(blobs.experts, rooms.__getitem__, _ignore)
            except Exception as error:
                faults.append(error)

    threads = [threading.Thread(target=work) for _ in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]


@contextmanager
def _source(store: Child, blobs: Blobs, scheme: Scheme, redis_url: str) -> Iterator[GrpcExpertSource]:
    reading = Reading(redis_url=redis_url, schemes=(scheme,))
    with open_source(store.address, None, blobs.pack.model_id, reading) as source:
        yield source


def _ignore(expert: ExpertId, checked: bool) -> None:
    pass


def _timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _cpu_s(*others: int) -> float:
    own = os.times()
    return own.user + own.system + sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in others)


def _upload(folder: Path, url: str) -> None:
    target = open_store(url)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            target.put(str(path.relative_to(folder)), path.read_bytes())


def object_bytes(metrics: str) -> float:
    """What a store has read of object storage for experts, by its metrics at ``host:port``."""
    with urllib.request.urlopen(f"http://{metrics}/metrics") as answer:
        text = answer.read().decode()
    found = re.search(r'^premoe:store_read_bytes_total\{[^}]*source="object"[^}]*\} (\S+)$', text, re.MULTILINE)
    return float(found[1]) if found else 0.0
