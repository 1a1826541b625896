"""A plain gRPC client that asks at a fixed rate, whether or not answers come: what callers of a service see.

with open_loop(Load(target, prompt, rate=4), folder) as client:
    …
assert client.failed() == []

The client is a child with nothing of PreMoE but the generated stubs, under the service config of docs/.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc
from premoe.worker.v1 import worker_pb2, worker_pb2_grpc

SERVICE_CONFIG = Path(__file__).parents[2] / "docs" / "service-config.json"
FIRST_ANSWERS = 4
"""Requests that have ended when the block begins: connections stand by then."""
START_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent. All requests are alike, so that only the service makes them differ."""

    target: str
    """gRPC target; the client looks it up itself."""
    prompt: str
    rate: float
    """Requests a second."""
    max_tokens: int = 8
    deadline_s: float = 40.0
    """Of each request; more is a failure."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request and how it ended. Times are CLOCK_MONOTONIC, which all processes of a machine share."""

    trace_id: str
    started: float
    first: float | None
    """When the first message came; a failure before it would have been retried."""
    ended: float
    code: str
    """Name of the gRPC status."""
    details: str

    @property
    def ok(self) -> bool:
        return self.code == grpc.StatusCode.OK.name

    def in_flight(self, at: float) -> bool:
        return self.started <= at < self.ended


class Client:
    """A running client, or the records of one that has ended."""

    def __init__(self, process: subprocess.Popen[bytes], records: Path) -> None:
        self._process = process
        self._records = records

    def requests(self) -> list[Request]:
        """Those that have ended, by their start."""
        lines = self._records.read_text().split("\n")[:-1]
        return sorted((Request(**json.loads(line)) for line in lines), key=lambda request: request.started)

    def failed(self) -> list[Request]:
        return [request for request in self.requests() if not request.ok]

    def wait_for(self, count: int, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until that many have ended. Raises AssertionError when they do not."""
        deadline = time.monotonic() + timeout_s
        while len(self.requests()) < count:
            assert self._process.poll() is None, "the client ended"
            assert time.monotonic() < deadline, f"{len(self.requests())} of {count} requests ended in {timeout_s:g} s"
            time.sleep(0.1)

    def stop(self) -> None:
        """Send no more and wait for the last answers. Raises AssertionError when the client itself failed."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(2 * START_TIMEOUT_S) == 0, "the client failed"


@contextmanager
def open_loop(load: Load, folder: Path) -> Iterator[Client]:
    """Send from before the block to its end; afterwards every request has ended. Records stay in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    records = folder / "requests.jsonl"
    with records.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(asdict(load))], stdin=subprocess.PIPE, stdout=out
        )
    with process:
        try:
            client = Client(process, records)
            client.wait_for(FIRST_ANSWERS)
            yield client
            client.stop()
        finally:
            process.kill()


async def send(load: Load, stopped: asyncio.Event) -> None:
    """Send at the load's rate until told to stop, then wait for what is in flight."""
    options = [("grpc.service_config", SERVICE_CONFIG.read_text())]
    async with grpc.aio.insecure_channel(load.target, options=options) as channel:
        stub = worker_pb2_grpc.WorkerServiceStub(channel)
        begin = time.monotonic()
        running: list[asyncio.Task[None]] = []
        while not stopped.is_set():
            running.append(asyncio.create_task(_ask(stub, load)))
            pause = begin + len(running) / load.rate - time.monotonic()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopped.wait(), max(0.0, pause))
        await asyncio.gather(*running)


async def _ask(stub: worker_pb2_grpc.WorkerServiceAsyncStub, load: Load) -> None:
    """One request, and its record on standard output."""
    request = worker_pb2.GenerateRequest(
        prompt=worker_pb2.Prompt(text=load.prompt), sampling=worker_pb2.Sampling(max_tokens=load.max_tokens)
    )
    trace_id = secrets.token_hex(16)
    parent = ("traceparent", f"00-{trace_id}-{secrets.token_hex(8)}-01")
    started, first = time.monotonic(), None
    code, details = grpc.StatusCode.OK, ""
    try:
        async for _ in stub.Generate(request, timeout=load.deadline_s, metadata=(parent,)):
            first = first or time.monotonic()
    except grpc.aio.AioRpcError as error:
        code, details = error.code(), error.details() or ""
    record = Request(trace_id, started, first, time.monotonic(), code.name, details)
    print(json.dumps(asdict(record)), flush=True)


async def _main(load: Load) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin.fileno(), stopped.set)  # readable at its end, which is when it is closed
    sending = asyncio.create_task(send(load, stopped))
    await stopped.wait()
    loop.remove_reader(sys.stdin.fileno())
    await sending


if __name__ == "__main__":
    asyncio.run(_main(Load(**json.loads(sys.argv[1]))))
