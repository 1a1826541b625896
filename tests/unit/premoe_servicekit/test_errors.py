from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from premoe.experts.v1 import experts_pb2 as pb
from premoe.experts.v1 import experts_pb2_grpc
from premoe_servicekit.clients import Timeouts, blocking_channel, channel
from premoe_servicekit.errors import DOMAIN, from_rpc_error, rpc_errors, status_code, to_status
from support.scripted_store import SERVICE, ScriptedStore, scripted

from premoe_runtime.formats.errors import (
    Conflict,
    CorruptData,
    Exhausted,
    Forbidden,
    InvalidInput,
    NotFound,
    PremoeError,
    Unavailable,
)

TABLE = [
    (InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
    (NotFound, grpc.StatusCode.NOT_FOUND),
    (Conflict, grpc.StatusCode.FAILED_PRECONDITION),
    (CorruptData, grpc.StatusCode.DATA_LOSS),
    (Unavailable, grpc.StatusCode.UNAVAILABLE),
    (Exhausted, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (Forbidden, grpc.StatusCode.PERMISSION_DENIED),
    (PremoeError, grpc.StatusCode.INTERNAL),
]


def raising(error: BaseException) -> ScriptedStore:
    async def unary() -> bytes:
        raise error

    async def stream() -> AsyncIterator[bytes]:
        yield b"first"
        raise error

    return ScriptedStore(unary, stream)


async def get_manifest(address: str) -> bytes:
    async with channel(address) as to_server:
        stub = experts_pb2_grpc.ExpertStoreServiceStub(to_server)
        with rpc_errors("the store"):
            return (await stub.GetManifest(pb.GetManifestRequest())).manifest


@pytest.mark.parametrize(("kind", "code"), TABLE)
async def test_an_error_crosses_the_wire_as_itself(kind: type[PremoeError], code: grpc.StatusCode) -> None:
    error = kind("no such thing in\nthis place", reason="SOME_REASON")
    assert status_code(error) is code
    async with scripted(raising(error)) as server:
        with pytest.raises(kind) as caught:
            await get_manifest(server.address)
    assert type(caught.value) is kind
    assert str(caught.value) == "no such thing in this place"
    assert caught.value.reason == "SOME_REASON"


@pytest.mark.parametrize(("kind", "code"), TABLE)
async def test_an_error_in_mid_stream_crosses_after_what_was_sent(
    kind: type[PremoeError], code: grpc.StatusCode
) -> None:
    received = []
    async with scripted(raising(kind("broken", reason="SOME_REASON"))) as server, channel(server.address) as to_server:
        stub = experts_pb2_grpc.ExpertStoreServiceStub(to_server)
        call = stub.Fetch(pb.FetchRequest())
        first = await call.read()
        assert isinstance(first, pb.FetchResponse)
        received.append(first.data)
        with pytest.raises(kind, match="broken") as caught, rpc_errors("the store"):
            await call.read()
    assert received == [b"first"]
    assert caught.value.reason == "SOME_REASON"


async def test_blocking_clients_see_the_same_errors() -> None:
    async with scripted(raising(NotFound("gone", reason="MODEL_NOT_FOUND"))) as server:

        def call() -> None:
            with blocking_channel(server.address) as to_server, rpc_errors("the store"):
                experts_pb2_grpc.ExpertStoreServiceStub(to_server).GetManifest(pb.GetManifestRequest())

        def read() -> None:
            with blocking_channel(server.address) as to_server, rpc_errors("the store"):
                list(experts_pb2_grpc.ExpertStoreServiceStub(to_server).Fetch(pb.FetchRequest()))

        for work in (call, read):
            with pytest.raises(NotFound, match="gone") as caught:
                await asyncio.to_thread(work)
            assert caught.value.reason == "MODEL_NOT_FOUND"


async def test_what_nobody_expected_is_internal_in_short_and_logged_in_full(caplog: pytest.LogCaptureFixture) -> None:
    async with scripted(raising(ZeroDivisionError("secret detail"))) as server:
        with caplog.at_level(logging.ERROR), pytest.raises(PremoeError) as caught:
            await get_manifest(server.address)
    assert type(caught.value) is PremoeError
    assert "secret detail" not in str(caught.value)
    assert "ZeroDivisionError" in str(caught.value)
    (record,) = [one for one in caplog.records if "GetManifest failed" in one.getMessage()]
    assert "secret detail" in record.getMessage()
    assert record.exc_info is not None


async def test_an_error_of_a_server_behind_is_passed_on() -> None:
    async with scripted(raising(CorruptData("bad bytes", reason="DIGEST_MISMATCH"))) as behind:

        async def unary() -> bytes:
            async with channel(behind.address) as to_server:
                stub = experts_pb2_grpc.ExpertStoreServiceStub(to_server)
                return (await stub.GetManifest(pb.GetManifestRequest())).manifest

        async with scripted(ScriptedStore(unary)) as front:
            with pytest.raises(CorruptData, match="bad bytes") as caught:
                await get_manifest(front.address)
    assert caught.value.reason == "DIGEST_MISMATCH"


def details(error: PremoeError) -> list[object]:
    status = to_status(error)
    found: list[object] = []
    parsed = rpc_status.status_pb2.Status.FromString(dict(status.trailing_metadata)["grpc-status-details-bin"])
    for detail in parsed.details:
        for kind in (error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()):
            if detail.Unpack(kind):
                found.append(kind)
    return found


def test_retry_info_comes_where_trying_again_may_help() -> None:
    def kinds(error: PremoeError) -> list[str]:
        return [type(detail).__name__ for detail in details(error)]

    assert kinds(Unavailable("down")) == ["ErrorInfo", "RetryInfo"]
    assert kinds(Exhausted("full", reason="QUEUE_FULL")) == ["ErrorInfo", "RetryInfo"]
    assert kinds(Exhausted("full", reason="DISK_FULL")) == ["ErrorInfo"]
    assert kinds(NotFound("gone")) == ["ErrorInfo"]
    assert kinds(Unavailable("late", reason="DEADLINE_EXCEEDED")) == ["ErrorInfo"]


def test_error_info_has_our_domain() -> None:
    (info,) = details(NotFound("gone", reason="MODEL_NOT_FOUND"))
    assert (info.reason, info.domain) == ("MODEL_NOT_FOUND", DOMAIN)  # type: ignore[attr-defined]


async def test_nobody_there_is_unavailable_and_names_the_peer(unused_tcp_port: int) -> None:
    with pytest.raises(Unavailable, match="the store does not answer") as caught:
        await get_manifest(f"127.0.0.1:{unused_tcp_port}")
    assert caught.value.reason == "UNAVAILABLE"


async def test_an_unimplemented_call_is_no_premoe_error_class() -> None:
    async with scripted(ScriptedStore()) as server, channel(server.address) as to_server:
        missing: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = to_server.unary_unary(f"/{SERVICE}/Nothing")
        with pytest.raises(PremoeError) as caught, rpc_errors("the store"):
            await missing(b"")
    assert (type(caught.value), caught.value.reason) == (PremoeError, "UNIMPLEMENTED")


async def test_too_late_is_unavailable_with_its_own_reason() -> None:
    async def forever() -> bytes:
        await asyncio.Event().wait()
        return b""

    async with (
        scripted(ScriptedStore(forever)) as server,
        channel(server.address, timeouts=Timeouts(unary_s=0.2)) as to_server,
    ):
        stub = experts_pb2_grpc.ExpertStoreServiceStub(to_server)
        with pytest.raises(Unavailable, match="did not answer in time") as caught, rpc_errors("the store"):
            await stub.GetManifest(pb.GetManifestRequest())
    assert caught.value.reason == "DEADLINE_EXCEEDED"
    assert status_code(caught.value) is grpc.StatusCode.DEADLINE_EXCEEDED


def test_an_rpc_error_without_a_code_still_gives_one_line() -> None:
    error = from_rpc_error(grpc.RpcError("odd\nthing"), peer="the store")
    assert type(error) is PremoeError
    assert "\n" not in str(error)
