"""What the gateway adds to a token, and what it keeps, under many streams and many new connections.

    python -m benchmarks gateway [--streams 200 --connections 50 --seconds 60 --token-ms 100] [--json FILE]

A worker process without a model sends every stream a token each ``--token-ms``; the token's text is the moment it was
sent (CLOCK_MONOTONIC, one clock for all processes of a machine). The same streams run first over gRPC from the worker
itself, then as server-sent events through the gateway, beside which ``--connections`` new connections a second each
ask for one token. A token's lag is from that moment until a client has its text, so the gateway's share is the
difference of both runs. Clients read raw sockets: an HTTP client library would cost more than the gateway.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.parse import urlsplit

import click
import grpc
import numpy as np
from _report import Report, json_option
from premoe.worker.v1 import worker_pb2, worker_pb2_grpc
from support.fake_worker import MODEL, FakeWorker, GenerateContext
from support.fake_worker import serving as serving_worker
from support.processes import serving

WARM_S = 5.0
STAMP = re.compile(rb'"(?:content|text)":"(\d+) "')


@dataclass
class PacedWorker(FakeWorker):
    """Sends ``max_tokens`` moments, one each ``token_s`` and the first at once."""

    token_s: float = 0.1

    async def Generate(
        self, request: worker_pb2.GenerateRequest, context: GenerateContext
    ) -> AsyncIterator[worker_pb2.GenerateResponse]:
        yield worker_pb2.GenerateResponse(started=worker_pb2.Started(pattern=request.pattern, prompt_tokens=7))
        due = time.monotonic()
        for number in range(request.sampling.max_tokens):
            await asyncio.sleep(due - time.monotonic())
            due += self.token_s
            delta = worker_pb2.Delta(text=f"{time.monotonic_ns()} ", token_ids=[number])
            yield worker_pb2.GenerateResponse(delta=delta)
        finished = worker_pb2.Finished(reason=worker_pb2.FINISH_REASON_LENGTH, prompt_tokens=7)
        finished.completion_tokens = request.sampling.max_tokens
        yield worker_pb2.GenerateResponse(finished=finished)


def run_worker(token_s: float, parent: Connection) -> None:
    """Serve until the parent closes its end."""

    async def run() -> None:
        async with serving_worker(PacedWorker(token_s=token_s)) as server:
            parent.send(server.address)
            await asyncio.to_thread(parent.poll, None)

    asyncio.run(run())


@dataclass
class Lags:
    """Seconds from a token's sending to its arrival, and the requests that did not end as they should."""

    seconds: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    requests: int = 0

    def arrived(self, sent_ns: int) -> None:
        self.seconds.append((time.monotonic_ns() - sent_ns) / 1e9)

    def quantile_s(self, share: float) -> float:
        return float(np.quantile(self.seconds, share)) if self.seconds else float("nan")


async def direct(address: str, streams: int, tokens: int) -> Lags:
    """The streams over gRPC, from the worker itself."""
    lags = Lags()
    async with grpc.aio.insecure_channel(address) as channel:
        worker = worker_pb2_grpc.WorkerServiceStub(channel)

        async def one() -> None:
            request = worker_pb2.GenerateRequest(prompt=worker_pb2.Prompt(text="x"))
            request.sampling.max_tokens = tokens
            async for response in worker.Generate(request):
                if response.HasField("delta"):
                    lags.arrived(int(response.delta.text))

        await _all(lags, streams, one)
    return lags


async def through(url: str, streams: int, tokens: int, connections: float, seconds: float) -> tuple[Lags, Lags]:
    """The streams through the gateway, and beside them the new connections."""
    lags, short = Lags(), Lags()

    async def connect() -> None:
        begun = time.monotonic()
        tasks = []
        for number in range(int(connections * seconds)):
            await asyncio.sleep(begun + number / connections - time.monotonic())
            tasks.append(asyncio.create_task(_all(short, 1, lambda: ask(url, 1, short))))
        await asyncio.gather(*tasks)

    await asyncio.gather(_all(lags, streams, lambda: ask(url, tokens, lags)), connect())
    return lags, short


async def _all(lags: Lags, number: int, one: Callable[[], Awaitable[None]]) -> None:
    lags.requests += number
    for result in await asyncio.gather(*(one() for _ in range(number)), return_exceptions=True):
        if isinstance(result, BaseException):
            lags.faults.append(f"{type(result).__name__}: {result}")


async def ask(url: str, tokens: int, lags: Lags) -> None:
    """One streamed chat completion over a connection of its own. Raises ValueError for an answer that is not whole."""
    where = urlsplit(url)
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": tokens,
        "stream": True,
        "pattern": "full",
    }
    data = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {where.netloc}\r\nconnection: close\r\n"
    writer.write(f"{head}content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data)
    try:
        status = await reader.readline()
        if b" 200 " not in status:
            raise ValueError(f"{status!r} {await reader.read(2000)!r}")
        seen, whole = 0, False
        while line := await reader.readline():
            if stamp := STAMP.search(line):
                seen += 1
                lags.arrived(int(stamp[1]))
            whole = whole or line.startswith(b"data: [DONE]")
        if seen != tokens or not whole:
            raise ValueError(f"{seen} of {tokens} tokens, end seen: {whole}")
    finally:
        writer.close()


async def memory(pid: int, seconds: float, samples: list[float]) -> None:
    """MiB that a process has resident, each second."""
    for _ in range(int(seconds)):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        samples.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
        await asyncio.sleep(1)


def cpu_s(pid: int) -> float:
    times = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")


@click.command()
@click.option("--streams", default=200, show_default=True)
@click.option("--connections", default=50.0, show_default=True, help="New connections a second.")
@click.option("--seconds", default=60.0, show_default=True)
@click.option("--token-ms", default=100.0, show_default=True, help="Between two tokens of a stream.")
@json_option
def main(streams: int, connections: float, seconds: float, token_ms: float, json_file: Path | None) -> None:
    """Measure and print."""
    settings = {"streams": streams, "connections_per_s": connections, "seconds": seconds, "token_ms": token_ms}
    report = Report("gateway", settings)
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=run_worker, args=(token_ms / 1e3, theirs), daemon=True)
    process.start()
    address = ours.recv()
    tokens = int(seconds * 1e3 / token_ms)
    try:
        with serving("premoe_gateway.cli", ["--workers", address, "--http-port", "0", "--port", "0"]) as gateway:
            url, pid = str(gateway.ready["url"]), gateway.process.pid
            asyncio.run(through(url, streams, int(WARM_S * 1e3 / token_ms), connections, WARM_S))
            plain = asyncio.run(direct(address, streams, tokens))
            used_s, mib = cpu_s(pid), list[float]()

            async def loaded() -> tuple[Lags, Lags]:
                both, _ = await asyncio.gather(
                    through(url, streams, tokens, connections, seconds), memory(pid, seconds, mib)
                )
                return both

            streamed, short = asyncio.run(loaded())
            report.values["gateway's CPU seconds a second"] = (cpu_s(pid) - used_s) / seconds
    finally:
        ours.close()
        process.join(10)
        process.kill()
    for name, lags in (("direct", plain), ("gateway", streamed), ("new connections", short)):
        report.values[name] = {
            "requests": lags.requests,
            "faults": len(lags.faults),
            "tokens": len(lags.seconds),
            "lag_p50_ms": lags.quantile_s(0.5) * 1e3,
            "lag_p95_ms": lags.quantile_s(0.95) * 1e3,
        }
    for share in (0.5, 0.95):
        added = (streamed.quantile_s(share) - plain.quantile_s(share)) * 1e3 / token_ms
        report.values[f"added a token, p{share * 100:.0f}, share of its time"] = added
    report.values["resident MiB"] = {"after 5 s": mib[min(5, len(mib) - 1)], "at the end": mib[-1]}
    report.finish(json_file)
    for fault in (plain.faults + streamed.faults + short.faults)[:5]:
        click.echo(f"fault: {fault}", err=True)


if __name__ == "__main__":
    main()
