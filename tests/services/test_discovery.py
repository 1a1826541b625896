"""The gateway finds workers by name: real gRPC workers on several loopback addresses, with and without TLS."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from premoe.worker.v1 import worker_pb2_grpc
from premoe_gateway.domain import Ask, Delta, Finished, PatternChoice, Sampling, Started
from premoe_gateway.pool import WorkerPool
from premoe_gateway.service import Gateway
from premoe_gateway.targets import Endpoint, Published, Targets
from premoe_servicekit.clients import blocking_channel, channel
from premoe_servicekit.health import SERVING
from premoe_servicekit.server import RpcServer, registration, serve_until
from premoe_servicekit.settings import ServerSettings
from premoe_servicekit.tls import Tls, tls_of
from support.certificates import Authority, tls_folder
from support.fake_worker import MODEL, FakeWorker, until
from support.keys import replace_file
from support.processes import serving as serving_process
from support.servers import free_port

from premoe_runtime.formats.errors import Exhausted, NotFound, Unavailable

FULL = PatternChoice("full")


def ask(model: str = MODEL) -> Ask:
    return Ask(model, "one two", Sampling(), pattern="full")


class Cluster:
    """Fake workers on 127.0.0.x, one port, and the names that lead to them."""

    def __init__(self, stack: AsyncExitStack, tls: Tls | None) -> None:
        self._stack = stack
        self._tls = tls
        self.port = free_port()
        self.records: dict[str, list[str]] = {}
        self.opened: list[Endpoint] = []
        self.gateway = Gateway((), None, on_unknown=None, timeout_s=30)
        self.pool: WorkerPool

    async def start(self, worker: FakeWorker, address: str, name: str) -> RpcServer:
        """A worker that serves, known under ``name``."""
        entry = registration(
            "premoe.worker.v1.WorkerService", worker, worker_pb2_grpc.add_WorkerServiceServicer_to_server
        )
        server = RpcServer([entry], ServerSettings(host=address, port=self.port), tls=self._tls)
        await server.start()
        await server.set_serving(True)
        self._stack.push_async_callback(server.stop, 0)
        self.records.setdefault(name, []).append(address)
        return server

    async def look(self) -> None:
        await self.pool.update()
        await self.gateway.refresh()

    async def lookup(self, host: str, port: int) -> Sequence[str]:
        return self.records.get(host, [])

    def connect(self, endpoint: Endpoint) -> grpc.aio.Channel:
        self.opened.append(endpoint)
        return channel(endpoint.address, tls=self._tls, server_name=endpoint.server_name)

    async def answer(self, model: str = MODEL) -> str:
        events = [event async for event in self.gateway.generate(ask(model), FULL)]
        assert isinstance(events[0], Started)
        assert isinstance(events[-1], Finished)
        return "".join(event.text for event in events if isinstance(event, Delta))


@asynccontextmanager
async def cluster(*names: str, tls: Tls | None = None, published: Path | None = None) -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as stack:
        made = Cluster(stack, tls)
        file = None if published is None else Published(published)
        targets = Targets([f"dns:///{name}:{made.port}" for name in names], file, lookup=made.lookup)
        made.pool = WorkerPool(made.gateway, targets, made.connect)
        stack.push_async_callback(made.pool.close)
        yield made


async def test_workers_come_and_go_with_their_name(tmp_path: Path) -> None:
    async with cluster("m-worker") as found:
        await found.look()
        assert found.gateway.healthy() == []
        with pytest.raises(Unavailable, match="no worker answers"):
            await found.answer()
        first, second = FakeWorker(words=("a",)), FakeWorker(words=("b",))
        await found.start(first, "127.0.0.1", "m-worker")
        await found.look()
        assert await found.answer() == "a"
        await found.start(second, "127.0.0.2", "m-worker")
        found.records["m-worker"].remove("127.0.0.1")
        await found.look()
        assert await found.answer() == "b"
        assert [state.address for state in found.gateway.healthy()] == [f"127.0.0.2:{found.port}"]


async def test_a_worker_that_leaves_ends_its_running_request_in_peace() -> None:
    async with cluster("m-worker") as found:
        worker = FakeWorker(words=("a", "b"), hold=asyncio.Event())
        await found.start(worker, "127.0.0.1", "m-worker")
        await found.look()
        events = found.gateway.generate(ask(), FULL)
        assert isinstance(await anext(events), Started)
        assert await anext(events) == Delta("a", token_ids=(0,))
        found.records["m-worker"].clear()
        await found.look()
        assert found.gateway.healthy() == []
        await asyncio.sleep(1.2)  # longer than the pool looks for the end of requests
        assert worker.hold is not None
        worker.hold.set()
        assert [type(event) for event in [event async for event in events]] == [Delta, Finished]
        assert not worker.cancelled.is_set()


async def test_several_models_behind_one_gateway() -> None:
    async with cluster("a-worker", "b-worker") as found:
        await found.start(FakeWorker(words=("a",), model="model-a"), "127.0.0.1", "a-worker")
        await found.start(FakeWorker(words=("b",), model="model-b"), "127.0.0.2", "b-worker")
        await found.look()
        assert (await found.answer("model-a"), await found.answer("model-b")) == ("a", "b")
        assert {state.model for state in found.gateway.healthy()} == {"model-a", "model-b"}
        with pytest.raises(NotFound, match="there is model-a, model-b"):
            await found.answer("model-c")
        # A model that was here before is on its way back, rather than unknown.
        found.records["b-worker"].clear()
        await found.look()
        with pytest.raises(Unavailable, match="no worker of 'model-b' answers"):
            await found.answer("model-b")


async def test_a_model_of_another_namespace_is_served_once_it_is_published_and_no_restart_is_needed(
    tmp_path: Path,
) -> None:
    path = tmp_path / "workers"
    async with cluster("own.release.svc", published=path) as found:
        await found.start(FakeWorker(words=("own",), model="own"), "127.0.0.1", "own.release.svc")
        await found.start(FakeWorker(words=("chat",), model="chat"), "127.0.0.2", "chat-worker.team-a.svc")
        await found.look()
        with pytest.raises(NotFound, match="there is own"):
            await found.answer("chat")
        replace_file(path, f"dns:///chat-worker.team-a.svc:{found.port}\n".encode())
        await found.look()
        assert (await found.answer("own"), await found.answer("chat")) == ("own", "chat")


async def test_under_tls_the_name_is_what_certificates_are_checked_for(tmp_path: Path) -> None:
    authority = Authority()
    folder = tls_folder(tmp_path / "tls", authority, "m-worker")
    folder.write(authority.issue("m-worker", addresses=()), authority.pem)
    async with cluster("m-worker", "other", tls=tls_of(folder.settings())) as found:
        await found.start(FakeWorker(), "127.0.0.1", "m-worker")
        await found.start(FakeWorker(), "127.0.0.2", "other")
        await found.look()
        assert [state.address for state in found.gateway.healthy()] == [f"127.0.0.1:{found.port}"]
        assert await found.answer() == "one two three"


@pytest.mark.parametrize("after", [0, 1], ids=["before its first event", "before its first token"])
async def test_a_worker_that_goes_away_before_its_first_token_is_replaced_by_another(after: int) -> None:
    async with cluster("m-worker") as found:
        gone = FakeWorker(fault=Unavailable("stopping", reason="STOPPING"))
        if after:
            gone = BreaksAfterStarted(fault=gone.fault)
        await found.start(gone, "127.0.0.1", "m-worker")
        await found.start(FakeWorker(), "127.0.0.2", "m-worker")
        await found.look()
        assert await found.answer() == "one two three"
        assert len(gone.requests) == 1


async def test_a_worker_whose_queue_is_full_is_passed_over_while_another_has_room() -> None:
    async with cluster("m-worker") as found:
        full = FakeWorker(fault=Exhausted("4 requests are waiting already", reason="QUEUE_FULL"))
        await found.start(full, "127.0.0.1", "m-worker")
        await found.start(FakeWorker(waiting=3), "127.0.0.2", "m-worker")
        await found.look()
        assert [await found.answer() for _ in range(3)] == ["one two three"] * 3
        assert len(full.requests) == 1


class Frozen(FakeWorker):
    """Takes calls and answers none, as a process that is stopped."""

    async def Generate(self, request, context):  # type: ignore[no-untyped-def]
        self.requests.append(request)
        await asyncio.Event().wait()
        yield

    async def GetResidency(self, request, context):  # type: ignore[no-untyped-def]
        if self.requests:
            await asyncio.Event().wait()
        return await super().GetResidency(request, context)


async def test_a_worker_that_freezes_gives_its_requests_back_before_their_first_token() -> None:
    async with cluster("m-worker") as found:
        frozen = Frozen()
        await found.start(frozen, "127.0.0.1", "m-worker")
        await found.start(FakeWorker(waiting=3), "127.0.0.2", "m-worker")
        await found.look()
        waiting = asyncio.create_task(found.answer())
        await until(lambda: bool(frozen.requests))
        await found.look()
        assert await found.answer() == "one two three"
        assert await waiting == "one two three"
        assert [state.address for state in found.gateway.healthy()] == [f"127.0.0.2:{found.port}"]


class BreaksAfterStarted(FakeWorker):
    """Says that it started, and fails before its first token."""

    async def Generate(self, request, context):  # type: ignore[no-untyped-def]
        self.requests.append(request)
        async for event in FakeWorker().Generate(request, context):
            yield event
            assert self.fault is not None
            raise self.fault


async def test_a_request_waits_for_no_one_but_finds_a_worker_that_came_meanwhile() -> None:
    """The only worker known has gone; its successor is found by one more look."""
    async with cluster("m-worker") as found:
        old = FakeWorker(fault=Unavailable("stopping", reason="STOPPING"))
        successor = FakeWorker(words=("new",))
        await found.start(old, "127.0.0.1", "m-worker")
        server = await found.start(successor, "127.0.0.2", "m-worker")
        await server.set_serving(False)
        await found.look()
        assert len(found.gateway.healthy()) == 1
        await server.set_serving(True)
        assert await found.answer() == "new"


@pytest.mark.timeout(180)
async def test_workers_are_replaced_one_after_the_other_under_load_without_a_failed_request() -> None:
    """As a rolling update does it: a new worker, then an old one drains, until all are new."""
    async with cluster("m-worker") as found:
        servers = [await found.start(FakeWorker(), f"127.0.0.{number}", "m-worker") for number in (1, 2)]
        await found.look()
        answered, done = 0, False

        async def load() -> None:
            nonlocal answered
            while not done:
                assert await found.answer() == "one two three"
                answered += 1

        async def look() -> None:
            while not done:
                await found.look()
                await asyncio.sleep(0.2)

        tasks = [asyncio.create_task(load()) for _ in range(6)]
        looking = asyncio.create_task(look())
        stopped = asyncio.Event()
        stopped.set()
        for number, old in enumerate(servers, start=3):
            await found.start(FakeWorker(), f"127.0.0.{number}", "m-worker")
            await until(lambda: len(found.gateway.healthy()) == 3, seconds=30)
            await serve_until(stopped, [old], drain_delay_s=0.6)
            found.records["m-worker"].pop(0)
            await until(lambda: len(found.gateway.healthy()) == 2, seconds=30)
        before = answered
        await until(lambda: answered > before + 20, seconds=30)
        done = True
        await asyncio.gather(*tasks, looking)


def test_a_gateway_without_a_model_is_ready_and_says_503() -> None:
    arguments = ("--workers", "dns:///no-such-name.invalid:50051", "--http-port", "0", "--health-port", "0")
    with serving_process("premoe_gateway.cli", arguments) as child:
        with blocking_channel(str(child.ready["health"])) as opened:
            health = health_pb2_grpc.HealthStub(opened)
            assert health.Check(health_pb2.HealthCheckRequest()).status == SERVING
        with httpx.Client(base_url=str(child.ready["url"])) as client:
            body = {"model": "tiny", "messages": [{"role": "user", "content": "one"}]}
            refused = client.post("/v1/chat/completions", json=body)
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "1"
            assert "no worker answers" in json.loads(refused.content)["error"]["message"]
            assert client.get("/v1/models").json() == {"object": "list", "data": []}
