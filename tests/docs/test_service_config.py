"""docs/service-config.json, which callers of workers copy."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import yaml
from premoe.worker.v1 import worker_pb2, worker_pb2_grpc
from premoe_servicekit.clients import service_config
from support.fake_worker import FakeWorker, GenerateContext
from support.open_loop import Load, Request, open_loop

ROOT = Path(__file__).parents[2]
LOOKUPS_APART_S = 30
"""gRPC's own default of grpc.dns_min_time_between_resolutions_ms."""


@dataclass
class Ends(FakeWorker):
    """Ends the first try of every request with UNAVAILABLE, before or after a first message."""

    after_message: bool = False
    seen: set[str] = field(default_factory=set)

    async def Generate(
        self,
        request: worker_pb2.GenerateRequest,
        context: GenerateContext,
    ) -> AsyncIterator[worker_pb2.GenerateResponse]:
        caller = str(dict(context.invocation_metadata() or ())["traceparent"])
        again = caller in self.seen
        self.seen.add(caller)
        if again or self.after_message:
            yield worker_pb2.GenerateResponse()
        if not again:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "going away")


async def asked(servicer: Ends, folder: Path) -> list[Request]:
    """What the plain client of the load tests saw."""
    server = grpc.aio.server()
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()

    def ask() -> list[Request]:
        with open_loop(Load(f"127.0.0.1:{port}", "hello", rate=20), folder) as client:
            pass
        return client.requests()

    try:
        return await asyncio.to_thread(ask)
    finally:
        await server.stop(None)


def published() -> dict[str, Any]:
    config: dict[str, Any] = json.loads((ROOT / "docs" / "service-config.json").read_text())
    return config


def test_it_has_the_policies_of_our_own_clients() -> None:
    ours = json.loads(service_config())
    theirs = published()
    for config in (ours, theirs):
        (methods,) = config["methodConfig"]
        del methods["name"]
    assert theirs == ours


def test_it_names_the_service_of_workers() -> None:
    (methods,) = published()["methodConfig"]
    service = worker_pb2.DESCRIPTOR.services_by_name["WorkerService"]
    assert methods["name"] == [{"service": service.full_name}]


def test_workers_serve_longer_after_their_deletion_than_clients_wait_between_lookups() -> None:
    drain = yaml.safe_load((ROOT / "charts" / "premoe" / "values.yaml").read_text())["worker"]["drain"]
    assert drain["preStopSeconds"] + drain["delaySeconds"] > LOOKUPS_APART_S


async def test_a_request_that_ends_before_its_first_message_is_tried_again(tmp_path: Path) -> None:
    requests = await asked(Ends(after_message=False), tmp_path)
    assert len(requests) >= 4
    assert {request.code for request in requests} == {"OK"}


async def test_a_stream_that_ends_later_fails(tmp_path: Path) -> None:
    requests = await asked(Ends(after_message=True), tmp_path)
    assert len(requests) >= 4
    assert {request.code for request in requests} == {"UNAVAILABLE"}
    assert all(request.first is not None for request in requests)
