from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from premoe.experts.v1 import experts_pb2 as pb
from premoe.experts.v1 import experts_pb2_grpc
from premoe_servicekit.clients import channel
from premoe_servicekit.deadlines import deadline, remaining
from premoe_servicekit.errors import rpc_errors
from premoe_servicekit.health import NOT_SERVING, SERVING
from premoe_servicekit.server import RpcServer, serve_until
from premoe_servicekit.settings import ServerSettings
from support.scripted_store import SERVICE, ScriptedStore, scripted

from premoe_runtime.formats.errors import Exhausted, InvalidInput, PremoeError, Unavailable


def stub_of(to_server: grpc.aio.Channel) -> experts_pb2_grpc.ExpertStoreServiceAsyncStub:
    return experts_pb2_grpc.ExpertStoreServiceStub(to_server)


async def check(to_server: grpc.aio.Channel, service: str = "") -> int:
    stub = health_pb2_grpc.HealthStub(to_server)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    status: int = answer.status
    return status


async def test_health_is_told_per_service_and_overall() -> None:
    async with scripted(ScriptedStore()) as server, channel(server.address) as to_server:
        assert [await check(to_server), await check(to_server, SERVICE)] == [SERVING, SERVING]
        await server.set_serving(False, SERVICE)
        assert [await check(to_server), await check(to_server, SERVICE)] == [SERVING, NOT_SERVING]
        await server.set_serving(False)
        assert [await check(to_server), await check(to_server, SERVICE)] == [NOT_SERVING, NOT_SERVING]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await check(to_server, "no.such.Service")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_started_server_does_not_claim_to_serve() -> None:
    server = RpcServer([], ServerSettings())
    async with channel(await server.start()) as to_server:
        assert await check(to_server) == NOT_SERVING
    await server.stop(0)


async def test_watchers_see_changes_and_their_stream_ends_at_the_stop() -> None:
    async with scripted(ScriptedStore()) as server, channel(server.address) as to_server:
        watch = health_pb2_grpc.HealthStub(to_server).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        seen = [(await watch.read()).status]
        await server.set_serving(False, SERVICE)
        seen.append((await watch.read()).status)
        await server.set_serving(True, SERVICE)
        seen.append((await watch.read()).status)
        # The grace period is far beyond the test's own limit: a watcher must not use it up.
        await server.stop(3600)
        seen += [answer.status async for answer in watch]
    assert seen == [SERVING, NOT_SERVING, SERVING, NOT_SERVING]


async def test_a_stopping_server_ends_running_calls_and_takes_no_new_ones() -> None:
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def slowly() -> bytes:
        entered.set()
        await go_on.wait()
        return b"done"

    async with scripted(ScriptedStore(slowly)) as server, channel(server.address) as to_server:
        running = asyncio.ensure_future(stub_of(to_server).GetManifest(pb.GetManifestRequest()))
        await entered.wait()
        watch = health_pb2_grpc.HealthStub(to_server).Watch(health_pb2.HealthCheckRequest())
        await watch.wait_for_connection()
        stopped, force = asyncio.Event(), asyncio.Event()
        stopping = asyncio.create_task(serve_until(stopped, [server], force))
        stopped.set()
        assert [answer.status async for answer in watch] == [SERVING, NOT_SERVING]
        async with channel(server.address) as late:
            with pytest.raises(Unavailable), rpc_errors("the store"):
                await stub_of(late).GetManifest(pb.GetManifestRequest(), timeout=10)
        assert not stopping.done()
        go_on.set()
        assert (await running).manifest == b"done"
        await stopping


async def test_a_second_signal_cuts_the_grace_short() -> None:
    entered, ended = asyncio.Event(), asyncio.Event()

    async def forever() -> bytes:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return b""

    settings = ServerSettings(grace_s=3600)
    async with scripted(ScriptedStore(forever), settings) as server, channel(server.address) as to_server:
        running = asyncio.ensure_future(stub_of(to_server).GetManifest(pb.GetManifestRequest(), timeout=600))
        await entered.wait()
        stopped, force = asyncio.Event(), asyncio.Event()
        stopping = asyncio.create_task(serve_until(stopped, [server], force))
        stopped.set()
        await asyncio.sleep(0)
        force.set()
        await stopping
        await ended.wait()
        with pytest.raises(Unavailable), rpc_errors("the store"):
            await running


class Slow:
    """A server of another kind, whose last request takes longer than anybody waits."""

    def __init__(self) -> None:
        self.asked: list[float | None] = []
        self.begun, self._cut = asyncio.Event(), asyncio.Event()

    async def stop(self, grace_s: float | None = None) -> None:
        self.asked.append(grace_s)
        self.begun.set()
        if grace_s == 0:
            self._cut.set()
        await self._cut.wait()


async def test_what_runs_beside_rpcs_is_drained_together_with_them_and_cut_with_them() -> None:
    entered = asyncio.Event()

    async def forever() -> bytes:
        entered.set()
        await asyncio.Event().wait()
        return b""

    slow, settings = Slow(), ServerSettings(grace_s=3600)
    async with scripted(ScriptedStore(forever), settings) as server, channel(server.address) as to_server:
        running = asyncio.ensure_future(stub_of(to_server).GetManifest(pb.GetManifestRequest(), timeout=600))
        await entered.wait()
        stopped, force = asyncio.Event(), asyncio.Event()
        stopping = asyncio.create_task(serve_until(stopped, [server], force, beside=[slow]))
        stopped.set()
        await slow.begun.wait()  # while the call still has its grace
        assert not running.done()
        force.set()
        await stopping
        assert slow.asked == [None, 0]
        with pytest.raises(Unavailable), rpc_errors("the store"):
            await running


async def test_a_cancelled_stream_closes_its_generator() -> None:
    closed = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield bytes(1 << 16)
        finally:
            closed.set()

    async with scripted(ScriptedStore(stream=endless)) as server, channel(server.address) as to_server:
        call = stub_of(to_server).Fetch(pb.FetchRequest())
        await call.read()
        call.cancel()
        await closed.wait()


async def test_a_deadline_that_passes_stops_the_work() -> None:
    cancelled = asyncio.Event()

    async def forever() -> bytes:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return b""

    async with scripted(ScriptedStore(forever)) as server, channel(server.address) as to_server:
        with pytest.raises(Unavailable), rpc_errors("the store"):
            await stub_of(to_server).GetManifest(pb.GetManifestRequest(), timeout=0.3)
        await cancelled.wait()


async def test_the_callers_deadline_bounds_what_the_server_calls() -> None:
    left: list[float | None] = []

    async def note() -> bytes:
        left.append(remaining())
        return b""

    async with scripted(ScriptedStore(note)) as behind, channel(behind.address) as to_behind:

        async def ask() -> bytes:
            left.append(remaining())
            return (await stub_of(to_behind).GetManifest(pb.GetManifestRequest(), timeout=5000)).manifest

        async with scripted(ScriptedStore(ask)) as front, channel(front.address) as to_front:
            await stub_of(to_front).GetManifest(pb.GetManifestRequest(), timeout=50)
            with deadline(40):
                await stub_of(to_front).GetManifest(pb.GetManifestRequest())
    first_front, first_behind, second_front, second_behind = (one or 0 for one in left)
    # Far below the 5,000 s asked for and the default, whatever gRPC makes of the last milliseconds.
    assert all(0 < one < 51 for one in (first_front, first_behind))
    assert all(0 < one < 41 for one in (second_front, second_behind))


async def test_a_caller_without_a_deadline_bounds_nothing() -> None:
    left: list[float | None] = []

    async def note() -> bytes:
        left.append(remaining())
        return b"answer"

    async with scripted(ScriptedStore(note)) as server, grpc.aio.insecure_channel(server.address) as plain:
        assert (await stub_of(plain).GetManifest(pb.GetManifestRequest())).manifest == b"answer"
    assert left[0] is None or left[0] > 1e6


async def test_idempotent_calls_are_tried_again_while_the_server_is_unavailable() -> None:
    store = ScriptedStore()

    async def third_time_lucky() -> bytes:
        if store.calls < 3:
            raise Unavailable("not yet")
        return b"now"

    store.unary = third_time_lucky
    async with scripted(store) as server, channel(server.address) as to_server:
        assert (await stub_of(to_server).GetManifest(pb.GetManifestRequest())).manifest == b"now"
    assert store.calls == 3


async def test_other_errors_are_not_tried_again() -> None:
    store = ScriptedStore()

    async def refuse() -> bytes:
        raise Exhausted("no room")

    store.unary = refuse
    async with scripted(store) as server, channel(server.address) as to_server:
        with pytest.raises(Exhausted), rpc_errors("the store"):
            await stub_of(to_server).GetManifest(pb.GetManifestRequest())
    assert store.calls == 1


async def test_a_message_beyond_the_limit_is_refused() -> None:
    settings = ServerSettings(max_message_bytes=1 << 16)
    async with scripted(ScriptedStore(), settings) as server, channel(server.address) as to_server:
        experts = [pb.ExpertId(layer=1, expert=1)] * 50_000
        with pytest.raises(Exhausted), rpc_errors("the store"):
            await stub_of(to_server).Resolve(pb.ResolveRequest(experts=experts))


async def services_by_reflection(address: str) -> set[str]:
    async with channel(address) as to_server:
        stub = reflection_pb2_grpc.ServerReflectionStub(to_server)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        return {service.name async for answer in call for service in answer.list_services_response.service}


async def test_reflection_is_there_by_flag_only() -> None:
    async with scripted(ScriptedStore(), ServerSettings(reflection=True)) as server:
        assert {SERVICE, "grpc.health.v1.Health"} <= await services_by_reflection(server.address)
    async with scripted(ScriptedStore()) as server:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await services_by_reflection(server.address)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_port_in_use_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = RpcServer([], ServerSettings(port=port))
        with pytest.raises(Unavailable, match=f"port {port} on 127.0.0.1 is in use") as caught:
            await server.start()
    assert (caught.value.reason, caught.value.exit_code) == ("PORT_IN_USE", 6)


async def test_two_servers_of_ours_do_not_share_a_port() -> None:
    async with scripted(ScriptedStore()) as server:
        port = int(server.address.rpartition(":")[2])
        with pytest.raises(Unavailable, match="in use"):
            await RpcServer([], ServerSettings(port=port)).start()


@pytest.mark.parametrize("host", ["203.0.113.1", "not a host"])
async def test_an_address_that_is_not_ours_is_one_line(host: str) -> None:
    with pytest.raises(InvalidInput, match="cannot listen on") as caught:
        await RpcServer([], ServerSettings(host=host)).start()
    assert "\n" not in str(caught.value)


async def test_errors_of_the_handler_are_premoe_errors_only() -> None:
    async with scripted(ScriptedStore()) as server, channel(server.address) as to_server:
        with pytest.raises(PremoeError), rpc_errors("the store"):
            await stub_of(to_server).Resolve(pb.ResolveRequest())
