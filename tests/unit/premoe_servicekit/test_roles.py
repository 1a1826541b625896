"""Roles in certificates, with real certificates on loopback: who may call what, and what the others are told."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from premoe.experts.v1 import experts_pb2 as pb
from premoe.experts.v1 import experts_pb2_grpc
from premoe.patterns.v1 import patterns_pb2
from premoe.worker.v1 import worker_pb2
from premoe_servicekit.clients import channel
from premoe_servicekit.errors import rpc_errors
from premoe_servicekit.health import SERVING
from premoe_servicekit.roles import CALLERS, SHARED, Admission, Caller, Role, caller, identity
from premoe_servicekit.server import RpcServer
from premoe_servicekit.settings import ServerSettings, load_settings
from premoe_servicekit.tls import Tls, tls_of
from support.certificates import Authority, TlsFolder, tls_folder
from support.scripted_store import ScriptedStore, scripted

from premoe_runtime.formats.errors import Forbidden, InvalidInput

RELEASE = "premoe.serving"
OTHER = "other.models"


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def server_files(tmp_path: Path, authority: Authority) -> TlsFolder:
    return tls_folder(tmp_path / "server", authority, uris=[identity(RELEASE, Role.EXPERT_STORE)])


async def answered() -> bytes:
    return b"manifest"


async def frames() -> AsyncIterator[bytes]:
    yield b"frame"


def client(folder: Path, authority: Authority, *uris: str) -> Tls:
    found = tls_of(tls_folder(folder, authority, "client.premoe.svc", uris=uris).settings())
    assert found is not None
    return found


def test_every_rpc_says_who_may_call_it() -> None:
    files = (pb.DESCRIPTOR, patterns_pb2.DESCRIPTOR, worker_pb2.DESCRIPTOR)
    ours = {
        service.full_name: {method.name for method in service.methods}
        for file in files
        for service in file.services_by_name.values()
    }
    assert {service: set(rpcs) for service, rpcs in CALLERS.items()} == ours


@pytest.mark.parametrize("role", [*Role, None])
async def test_a_role_calls_what_the_table_says_and_nothing_else(
    tmp_path: Path, authority: Authority, server_files: TlsFolder, role: Role | None
) -> None:
    """A unary call and a stream, each answered or refused before the service has heard of it; health in any case."""
    tls = client(tmp_path / "client", authority, *([] if role is None else [identity(RELEASE, role)]))
    store = ScriptedStore(answered, frames)
    async with (
        scripted(store, server_files.settings(tls_release=RELEASE)) as server,
        channel(server.address, tls=tls) as opened,
    ):
        stub = experts_pb2_grpc.ExpertStoreServiceStub(opened)
        manifest = stub.GetManifest(pb.GetManifestRequest(), timeout=60)
        fetch = stub.Fetch(pb.FetchRequest(), timeout=60)
        with contextlib.suppress(grpc.aio.AioRpcError):
            assert [frame.data async for frame in fetch] == [b"frame"]
        codes = {"GetManifest": await manifest.code(), "Fetch": await fetch.code()}
        health = await health_pb2_grpc.HealthStub(opened).Check(health_pb2.HealthCheckRequest(), timeout=60)
    allowed = {
        Role.WORKER: {"GetManifest", "Fetch"},
        Role.ADMIN: {"GetManifest", "Fetch"},
        Role.OPERATOR: {"GetManifest"},
        Role.TEST: {"GetManifest"},
    }.get(role or Role.GATEWAY, set())
    for rpc, code in codes.items():
        assert code is (grpc.StatusCode.OK if rpc in allowed else grpc.StatusCode.PERMISSION_DENIED), rpc
    assert store.calls == len(allowed)
    assert health.status == SERVING


async def test_a_refusal_is_one_line_for_the_caller_and_no_traceback_for_the_server(
    tmp_path: Path, authority: Authority, server_files: TlsFolder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "premoe_servicekit")
    callers = {
        "premoe://premoe.serving/gateway": "premoe://premoe.serving/gateway",
        "spiffe://cluster.local/x": "a caller without a role (no URI premoe://RELEASE/ROLE in its certificate)",
        "premoe://other.models/worker": "premoe://other.models/worker",
    }
    async with scripted(ScriptedStore(answered), server_files.settings(tls_release=RELEASE)) as server:
        for number, (uri, who) in enumerate(callers.items()):
            tls = client(tmp_path / str(number), authority, uri)
            async with channel(server.address, tls=tls) as opened:
                with pytest.raises(Forbidden) as caught, rpc_errors("the store"):
                    await experts_pb2_grpc.ExpertStoreServiceStub(opened).GetManifest(pb.GetManifestRequest())
            assert str(caught.value) == (
                f"{who} may not call GetManifest of premoe.experts.v1.ExpertStoreService; "
                "it takes admin, operator, test, worker of premoe.serving"
            )
            assert (caught.value.reason, caught.value.exit_code) == ("CALLER_REFUSED", 8)
    assert "Traceback" not in caplog.text


async def test_guests_come_as_workers_and_operators_only(
    tmp_path: Path, authority: Authority, server_files: TlsFolder
) -> None:
    settings = server_files.settings(tls_release=RELEASE, tls_guests=[OTHER])
    outcomes = {}
    async with scripted(ScriptedStore(answered), settings) as server:
        for role in Role:
            tls = client(tmp_path / role, authority, identity(OTHER, role))
            async with channel(server.address, tls=tls) as opened:
                call = experts_pb2_grpc.ExpertStoreServiceStub(opened).GetManifest(pb.GetManifestRequest(), timeout=60)
                outcomes[role] = await call.code()
    guests = {Role.WORKER, Role.OPERATOR}
    codes = {True: grpc.StatusCode.OK, False: grpc.StatusCode.PERMISSION_DENIED}
    assert outcomes == {role: codes[role in guests] for role in Role}


async def test_without_a_release_the_authority_is_enough(
    tmp_path: Path, authority: Authority, server_files: TlsFolder
) -> None:
    tls = client(tmp_path / "client", authority)
    async with scripted(ScriptedStore(answered), server_files.settings()) as server:
        async with channel(server.address, tls=tls) as opened:
            answer = await experts_pb2_grpc.ExpertStoreServiceStub(opened).GetManifest(pb.GetManifestRequest())
    assert answer.manifest == b"manifest"


def test_an_rpc_that_is_not_in_the_table_is_for_admins() -> None:
    admission = Admission(RELEASE)
    admission.check("/premoe.new.v1.New/Do", {"peer_uri": [identity(RELEASE, Role.ADMIN).encode()]})
    with pytest.raises(Forbidden, match=r"may not call Do of premoe\.new\.v1\.New; it takes admin of premoe\.serving$"):
        admission.check("/premoe.new.v1.New/Do", {"peer_uri": [identity(RELEASE, Role.WORKER).encode()]})


def test_a_uri_is_compared_whole_and_only_as_a_uri() -> None:
    admission = Admission(RELEASE)
    method = "/premoe.experts.v1.ExpertStoreService/Fetch"
    good = identity(RELEASE, Role.WORKER)
    for near in (f"{good}/", f"{good}?x", good.upper(), f"x{good}", good.replace("serving", "serving.evil"), "\xff"):
        with pytest.raises(Forbidden):
            admission.check(method, {"peer_uri": [near.encode("latin-1")]})
    with pytest.raises(Forbidden):
        admission.check(method, {"peer_dns": [good.encode()], "x509_subject_alternative_name": [good.encode()]})


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--tls-release", RELEASE], "--tls-release is given without --tls-cert, --tls-key and --tls-ca"),
        (["--tls-guests", OTHER], "--tls-guests is given without --tls-release"),
    ],
)
def test_settings_that_do_not_fit_together_are_one_line(arguments: list[str], line: str) -> None:
    settings = load_settings(ServerSettings, "premoe-test", arguments, {})
    with pytest.raises(InvalidInput) as caught:
        RpcServer([], settings)
    assert (str(caught.value), caught.value.reason) == (line, "TLS_INVALID")


@pytest.mark.parametrize("name", ["Premoe", "premoe/serving", "a b", ".a", "premoe://a"])
@pytest.mark.parametrize("flag", ["--tls-release", "--tls-guests"])
def test_a_name_that_is_no_release_is_refused(flag: str, name: str) -> None:
    with pytest.raises(InvalidInput, match=f"^{flag} .*match pattern"):
        load_settings(ServerSettings, "premoe-test", [flag, name], {})


FETCH = "/premoe.experts.v1.ExpertStoreService/Fetch"
MANIFEST = "/premoe.experts.v1.ExpertStoreService/GetManifest"


@pytest.mark.parametrize(
    ("method", "uris", "expected"),
    [
        (FETCH, [identity(RELEASE, Role.WORKER)], Caller()),
        (FETCH, [identity(RELEASE, Role.WORKER, "acme")], Caller("acme")),
        (FETCH, [identity(OTHER, Role.WORKER, "acme")], Caller("acme")),
        (FETCH, [identity(RELEASE, Role.ADMIN)], Caller(anywhere=True)),
        (FETCH, [identity(RELEASE, Role.ADMIN, "acme")], Caller("acme")),
        (MANIFEST, [identity(RELEASE, Role.OPERATOR)], Caller(anywhere=True)),
        # One certificate with all roles of a mesh: only those count that may call.
        (FETCH, [identity(RELEASE, role) for role in Role if role is not Role.ADMIN], Caller()),
        (FETCH, [identity(RELEASE, Role.WORKER, "acme"), identity(RELEASE, Role.GATEWAY)], Caller("acme")),
        # Services of before there were tenants know the first alone.
        (FETCH, [identity(RELEASE, Role.WORKER), identity(RELEASE, Role.WORKER, "acme")], Caller("acme")),
        (FETCH, [identity(RELEASE, Role.ADMIN), identity(RELEASE, Role.WORKER, "acme")], Caller("acme")),
    ],
)
def test_a_certificate_says_whose_packs_its_holder_sees(method: str, uris: list[str], expected: Caller) -> None:
    assert Admission(RELEASE, (OTHER,)).check(method, {"peer_uri": [uri.encode() for uri in uris]}) == expected


@pytest.mark.parametrize("tenant", ["Acme", "a/b", "..", "-a", "a.b", "a" * 64, "ä", "a%2f", "acme/"])
def test_what_is_no_tenant_is_no_role(tenant: str) -> None:
    with pytest.raises(Forbidden, match="may not call Fetch"):
        Admission(RELEASE).check(FETCH, {"peer_uri": [f"{identity(RELEASE, Role.WORKER)}/{tenant}".encode()]})


def test_a_certificate_of_several_tenants_is_refused() -> None:
    uris = [identity(RELEASE, Role.WORKER, tenant).encode() for tenant in ("acme", "other", "")]
    with pytest.raises(Forbidden, match="names several tenants"):
        Admission(RELEASE).check(FETCH, {"peer_uri": uris})


async def test_a_handler_knows_its_caller(tmp_path: Path, authority: Authority, server_files: TlsFolder) -> None:
    seen: list[Caller] = []

    async def answer() -> bytes:
        seen.append(caller())
        return b"manifest"

    async def stream() -> AsyncIterator[bytes]:
        seen.append(caller())
        yield b"frame"

    async with scripted(ScriptedStore(answer, stream), server_files.settings(tls_release=RELEASE)) as server:
        for tenant in ("acme", ""):
            tls = client(tmp_path / f"of-{tenant}", authority, identity(RELEASE, Role.WORKER, tenant))
            async with channel(server.address, tls=tls) as opened:
                stub = experts_pb2_grpc.ExpertStoreServiceStub(opened)
                await stub.GetManifest(pb.GetManifestRequest())
                assert [frame.data async for frame in stub.Fetch(pb.FetchRequest())] == [b"frame"]
    assert seen == [Caller("acme")] * 2 + [SHARED] * 2
