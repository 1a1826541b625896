"""What carries expert blobs, each against the fastest thing of its kind on this machine, in the same run.

    python benchmarks/data.py [--sizes 2,16,44 --rounds 5] [--no-swap] [--json FILE]

References: memcpy out of ordinary memory, one raw TCP connection on the loopback, O_DIRECT reads of the disk, and what
an object server (nginx) sends to a plain client. Beside ours: what stock parts give (redis-py's GET, generated gRPC
messages, obstore's whole object). Every way reads whole blobs into the same memory, in jobs of 32 MiB (or one blob) as
the fetcher's readers take them; rounds go in turns. CPU seconds are those of reader and server together. ``checked``:
every piece by its crc32c as it lands.

Then one swap of 1 GiB as a worker fetches it, by each scheme alone and with digests, and 16 cold workers that want one
set at once, from S3.

BBR, where it is the system's congestion control, paces a loopback to a half or third: everything runs in a network
namespace of its own under ``--congestion``, where such are to be had.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import _data_ways as ways
import click
import redis
from _data_ours import our_ways
from _data_servers import RawTcp, StockGrpc, in_process, nginx
from _data_swap import measure_cold, measure_swap
from _data_ways import Blobs, Way
from _own_network import congestion_control, enter
from _report import Report, json_option
from support.servers import redis_server

MIB = 1 << 20
JOB_BYTES = 32 * MIB
"""What a reader of the fetcher takes at once."""
COUNTS = {2: 64, 16: 12, 44: 6}
"""Blobs of each size."""
BUCKET = "blobs"


@dataclass(slots=True)
class Samples:
    """Of one way: seconds of every job, and of the processor for all of them."""

    job_bytes: int
    seconds: list[float] = field(default_factory=list)
    cpu_s: float = 0.0

    @property
    def gb_per_s(self) -> float:
        return self.job_bytes / statistics.median(self.seconds) / 1e9


def measure(found: Sequence[Way], blobs: Blobs, rounds: int) -> dict[str, Samples]:
    """All ways in turns. The first round warms up and does not count."""
    count = max(1, JOB_BYTES // blobs.num_bytes)
    rooms = [ways.slot(blobs.num_bytes) for _ in range(count)]
    jobs = [range(first, first + count) for first in range(0, len(blobs), count)]
    samples = {way.name: Samples(count * blobs.num_bytes) for way in found}
    for turn in range(rounds + 1):
        for way in (*found[turn % len(found) :], *found[: turn % len(found)]):
            mine, before = [], way.cpu_s()
            for job in jobs:
                way.before()
                started = time.perf_counter()
                way.read(job, rooms)
                mine.append(time.perf_counter() - started)
            if turn:
                samples[way.name].seconds += mine
                samples[way.name].cpu_s += way.cpu_s() - before
    return samples


def note(report: Report, size: int, found: Sequence[Way], samples: Mapping[str, Samples]) -> None:
    for way in found:
        mine = samples[way.name]
        ordered = sorted(mine.seconds)
        entry: dict[str, object] = {
            "gb_per_s": mine.gb_per_s,
            "p50_ms": ordered[len(ordered) // 2] * 1e3,
            "p99_ms": ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] * 1e3,
            "cpu_s_per_gb": mine.cpu_s / (len(mine.seconds) * mine.job_bytes / 1e9),
        }
        if way.reference:
            entry["over"] = f"{mine.gb_per_s / samples[way.reference].gb_per_s:.2f} {way.reference}"
        if way.target is not None:
            entry["wanted"] = way.target
        report.values[f"{size} MiB {way.name}"] = entry


def fill_redis(url: str, blobs: Blobs) -> None:
    """Whole values, as a client without pieces keeps them."""
    client = redis.Redis.from_url(url)
    for index, blob in enumerate(blobs.pack.blobs.values()):
        client.set(f"plain:{index}", blob)


def all_ways(stack: ExitStack, blobs: Blobs, folder: Path) -> list[Way]:
    raw_port, raw_pid = stack.enter_context(in_process(RawTcp(blobs.paths)))
    object_port, object_pid = stack.enter_context(nginx(blobs.memory.parent, folder / "nginx"))
    server = stack.enter_context(redis_server(folder))
    grpc_port, grpc_pid = stack.enter_context(in_process(StockGrpc(server.url)))
    fill_redis(server.url, blobs)
    bucket = f"{BUCKET}/"
    plain = [
        Way("memcpy", ways.memcpy(blobs)),
        Way("raw TCP", ways.raw_tcp(raw_port), servers=(raw_pid,)),
        Way("O_DIRECT", ways.direct(blobs)),
        Way("cold disk", ways.from_pack(blobs), "O_DIRECT", 0.9, before=ways.out_of_page_cache(blobs)),
        Way("object server", ways.http_whole(object_port, blobs, bucket), servers=(object_pid,)),
        Way("obstore whole", ways.obstore_whole(object_port, blobs, BUCKET), "object server", servers=(object_pid,)),
        Way("redis-py GET", ways.redis_get(server.url), "raw TCP", servers=(server.process.pid,)),
        Way("stock gRPC", ways.stock_grpc(grpc_port), "raw TCP", servers=(grpc_pid, server.process.pid)),
    ]
    return plain + our_ways(stack, blobs, server, (object_port, object_pid))


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--sizes", default="2,16,44", show_default=True, help="MiB of a blob, with commas.")
@click.option("--congestion", default="reno", show_default=True, help="Congestion control, in a network of its own.")
@click.option("--swap/--no-swap", default=True, help="Also a swap of 1 GiB.")
@json_option
def main(rounds: int, sizes: str, congestion: str, swap: bool, json_file: Path | None) -> None:
    """Rates of every way, beside its reference."""
    enter(congestion)
    report = Report("expert data plane", {"rounds": rounds, "sizes": sizes, "congestion": congestion_control()})
    with ExitStack() as stack:
        disk = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="premoe-data-")))
        memory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="premoe-data-", dir="/dev/shm")))
        for size in map(int, sizes.split(",")):
            with ExitStack() as servers:
                measure_size(report, servers, size, rounds, disk, memory)
        if swap:
            measure_swap(report, disk / "swap", memory / "swap", rounds)
        measure_cold(report, disk / "cold")
    report.finish(json_file)


def measure_size(report: Report, stack: ExitStack, size: int, rounds: int, disk: Path, memory: Path) -> None:
    here, there = memory / str(size) / BUCKET, disk / str(size)
    here.mkdir(parents=True)
    there.mkdir()
    blobs = Blobs.make(size * MIB, COUNTS.get(size, 8), here, there)
    found = all_ways(stack, blobs, there)
    note(report, size, found, measure(found, blobs, rounds))


if __name__ == "__main__":
    main()
