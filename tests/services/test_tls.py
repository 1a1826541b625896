"""Mutual TLS on real sockets: who is refused, rotation of both sides under load, and the health port."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from premoe.experts.v1 import experts_pb2 as pb
from premoe.experts.v1 import experts_pb2_grpc
from premoe.patterns.v1 import patterns_pb2, patterns_pb2_grpc
from premoe.worker.v1 import worker_pb2, worker_pb2_grpc
from premoe_servicekit.clients import blocking_channel, channel
from premoe_servicekit.errors import rpc_errors
from premoe_servicekit.health import NOT_SERVING, SERVING
from premoe_servicekit.probes import LIVENESS, ProbeServer
from premoe_servicekit.server import RpcServer, registration, serve_until
from premoe_servicekit.settings import ServerSettings
from premoe_servicekit.tls import Tls, tls_of
from support.certificates import Authority, TlsFolder, tls_folder
from support.fake_worker import until
from support.processes import Child, run_to_end, serving
from support.scripted_store import SERVICE, ScriptedStore

from premoe_runtime.formats.errors import Forbidden

Check = health_pb2.HealthCheckRequest
Stub = experts_pb2_grpc.ExpertStoreServiceStub


def tls(folder: TlsFolder, **changes: object) -> Tls:
    found = tls_of(folder.settings(**changes))
    assert found is not None
    return found


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def server_files(tmp_path: Path, authority: Authority) -> TlsFolder:
    return tls_folder(tmp_path / "server", authority, "store.premoe.svc")


@pytest.fixture
def client_files(tmp_path: Path, authority: Authority) -> TlsFolder:
    return tls_folder(tmp_path / "client", authority, "worker.premoe.svc")


@asynccontextmanager
async def secured(store: ScriptedStore, folder: TlsFolder, **changes: object) -> AsyncIterator[RpcServer]:
    """A serving store behind mutual TLS."""
    added = registration(SERVICE, store, experts_pb2_grpc.add_ExpertStoreServiceServicer_to_server)
    settings = folder.settings(**changes)
    server = RpcServer([added], settings, tls=tls_of(settings))
    await server.start()
    await server.set_serving(True)
    try:
        yield server
    finally:
        await server.stop(0)


async def answered() -> bytes:
    return b"manifest"


async def manifest(to_server: grpc.aio.Channel) -> bytes:
    answer = await Stub(to_server).GetManifest(pb.GetManifestRequest(), timeout=20)
    return bytes(answer.manifest)


async def test_a_call_with_a_certificate_of_the_authority_is_answered(
    server_files: TlsFolder, client_files: TlsFolder
) -> None:
    async with secured(ScriptedStore(answered), server_files) as server:
        async with channel(server.address, tls=tls(client_files)) as to_server:
            assert await manifest(to_server) == b"manifest"

        def blocking() -> bytes:
            with blocking_channel(server.address, tls=tls(client_files)) as to_server:
                return Stub(to_server).GetManifest(pb.GetManifestRequest(), timeout=20).manifest

        assert await asyncio.to_thread(blocking) == b"manifest"


def no_tls(folder: Path, authority: Authority) -> Callable[[str], grpc.aio.Channel]:
    return channel


def no_certificate(folder: Path, authority: Authority) -> Callable[[str], grpc.aio.Channel]:
    credentials = grpc.ssl_channel_credentials(authority.pem)
    return lambda address: grpc.aio.secure_channel(address, credentials)


def foreign_client(folder: Path, authority: Authority) -> Callable[[str], grpc.aio.Channel]:
    """The client trusts the server, but its own certificate comes from elsewhere."""
    files = TlsFolder(folder)
    files.write(Authority("foreign").issue(), authority.pem)
    return lambda address: channel(address, tls=tls(files))


def foreign_server(folder: Path, authority: Authority) -> Callable[[str], grpc.aio.Channel]:
    """The server would take the client, but the client trusts another authority."""
    files = TlsFolder(folder)
    files.write(authority.issue(), Authority("foreign").pem)
    return lambda address: channel(address, tls=tls(files))


def expired_client(folder: Path, authority: Authority) -> Callable[[str], grpc.aio.Channel]:
    files = TlsFolder(folder)
    files.write(authority.issue(days=-0.5), authority.pem)
    return lambda address: channel(address, tls=tls(files))


def other_name(folder: Path, authority: Authority) -> Callable[[str], grpc.aio.Channel]:
    files = tls_folder(folder, authority)
    return lambda address: channel(address, tls=tls(files, tls_server_name="gateway.premoe.svc"))


@pytest.mark.parametrize("who", [no_tls, no_certificate, foreign_client, foreign_server, expired_client, other_name])
async def test_others_are_refused(
    tmp_path: Path,
    authority: Authority,
    server_files: TlsFolder,
    who: Callable[[Path, Authority], Callable[[str], grpc.aio.Channel]],
) -> None:
    store = ScriptedStore(answered)
    opened = who(tmp_path / "other", authority)
    async with secured(store, server_files) as server, opened(server.address) as to_server:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await Stub(to_server).GetManifest(pb.GetManifestRequest(), timeout=5)
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert store.calls == 0


async def test_the_server_name_stands_in_for_the_address(
    tmp_path: Path, authority: Authority, client_files: TlsFolder
) -> None:
    files = TlsFolder(tmp_path / "named")
    files.write(authority.issue("store.premoe.svc", addresses=()), authority.pem)
    async with secured(ScriptedStore(answered), files) as server:
        named = tls(client_files, tls_server_name="store.premoe.svc")
        async with channel(server.address, tls=named) as to_server:
            assert await manifest(to_server) == b"manifest"
        async with channel(server.address, tls=tls(client_files)) as to_server:
            with pytest.raises(grpc.aio.AioRpcError):
                await Stub(to_server).GetManifest(pb.GetManifestRequest(), timeout=2)


async def test_both_sides_rotate_to_another_authority_under_load_without_a_failed_call(
    authority: Authority, server_files: TlsFolder, client_files: TlsFolder
) -> None:
    """As an authority is replaced in practice: trust both, then new certificates, then trust the new one only.

    New connections are made all the time (``max_connection_age_s``), and a stream is open from first to last.
    """
    last_frame = asyncio.Event()

    async def frames() -> AsyncIterator[bytes]:
        yield b"first"
        await last_frame.wait()
        yield b"last"

    after = Authority("after")
    done, calls = False, 0
    async with secured(ScriptedStore(answered, frames), server_files, max_connection_age_s=0.3) as server:
        client = tls(client_files)
        async with channel(server.address, tls=client) as to_server:
            stream = Stub(to_server).Fetch(pb.FetchRequest())
            answers = aiter(stream)
            received = [(await anext(answers)).data]

            async def load() -> None:
                nonlocal calls
                while not done:
                    assert await manifest(to_server) == b"manifest"
                    calls += 1
                    await asyncio.sleep(0.01)

            def blocking_load() -> int:
                made = 0
                with blocking_channel(server.address, tls=client) as blocking:
                    stub = Stub(blocking)
                    while not done:
                        assert stub.GetManifest(pb.GetManifestRequest(), timeout=20).manifest == b"manifest"
                        made += 1
                        threading.Event().wait(0.01)
                return made

            loads = [asyncio.create_task(load()) for _ in range(4)]
            thread = asyncio.create_task(asyncio.to_thread(blocking_load))
            old_server, old_client = authority.issue("store.premoe.svc"), authority.issue()
            new_server, new_client = after.issue("store.premoe.svc"), after.issue()
            steps: list[tuple[Any, Any, tuple[bytes, ...]]] = [
                (old_server, old_client, (authority.pem, after.pem)),
                (new_server, new_client, (authority.pem, after.pem)),
                (new_server, new_client, (after.pem,)),
            ]
            for server_pair, client_pair, trusted in steps:
                server_files.write(server_pair, *trusted)
                await asyncio.sleep(1.3)
                client_files.write(client_pair, *trusted)
                await asyncio.sleep(1.3)
            done = True
            await asyncio.gather(*loads)
            assert await thread > 50
            last_frame.set()
            received += [answer.data async for answer in answers]
        assert received == [b"first", b"last"]
        assert calls > 200
        async with channel(server.address, tls=client) as to_server:
            assert await manifest(to_server) == b"manifest"
        client_files.write(authority.issue(), after.pem)
        async with channel(server.address, tls=tls(client_files)) as to_server:
            with pytest.raises(grpc.aio.AioRpcError):
                await Stub(to_server).GetManifest(pb.GetManifestRequest(), timeout=2)


@asynccontextmanager
async def probed(settings: ServerSettings, server: RpcServer) -> AsyncIterator[health_pb2_grpc.HealthStub]:
    """The health port of a server, seen in plain text."""
    probes = ProbeServer(settings, tls_of(settings))
    address = await probes.start()
    probes.attach(server)
    try:
        async with channel(address) as to_probes:
            yield health_pb2_grpc.HealthStub(to_probes)
    finally:
        await probes.stop()


async def test_the_health_port_says_what_the_server_says_and_lives_on_its_own(server_files: TlsFolder) -> None:
    async with secured(ScriptedStore(), server_files) as server:
        async with probed(server_files.settings(), server) as health:

            async def status(service: str = "") -> int:
                found: int = (await health.Check(Check(service=service), timeout=10)).status
                return found

            assert [await status(), await status(SERVICE), await status(LIVENESS)] == [SERVING] * 3
            await server.set_serving(False, SERVICE)
            assert [await status(), await status(SERVICE)] == [SERVING, NOT_SERVING]
            await server.set_serving(False)
            assert [await status(), await status(LIVENESS)] == [NOT_SERVING, SERVING]
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await status("no.such.Service")
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("fault", ["expired", "foreign"])
async def test_the_health_port_turns_red_when_tls_is_dead(
    tmp_path: Path,
    authority: Authority,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("premoe_servicekit.probes.LOOPBACK_EVERY_S", 0.1)
    files = tls_folder(tmp_path / "tls", authority, "*.premoe.svc")
    async with secured(ScriptedStore(), files) as server, probed(files.settings(), server) as health:
        assert (await health.Check(Check())).status == SERVING
        bad = authority.issue(days=-0.5) if fault == "expired" else Authority("foreign").issue()
        files.write(bad, authority.pem)
        await asyncio.sleep(1.2)
        assert (await health.Check(Check(), timeout=10)).status == NOT_SERVING
        assert "so health is NOT_SERVING" in caplog.text
        files.write(authority.issue("*.premoe.svc"), authority.pem)
        await asyncio.sleep(1.2)
        assert (await health.Check(Check(), timeout=10)).status == SERVING


async def test_the_loopback_call_is_made_once_in_a_while(server_files: TlsFolder) -> None:
    """Many probes at once cost one handshake."""
    async with secured(ScriptedStore(), server_files) as server:
        calls = 0
        original = server.health.Check

        async def counted(request: Any, context: Any) -> Any:
            nonlocal calls
            calls += 1
            return await original(request, context)

        server.health.Check = counted  # type: ignore[method-assign]
        async with probed(server_files.settings(), server) as health:
            await asyncio.gather(*(health.Check(Check()) for _ in range(20)))
        assert calls <= 1


@pytest.fixture
def retrieval(tmp_path: Path, server_files: TlsFolder) -> Iterator[Child]:
    """A real process behind TLS with a health port, told by variables as a pod tells it."""
    variables = {f"PREMOE_RETRIEVAL_{name.upper()}": path for name, path in server_files.flags.items()}
    variables |= {"PREMOE_RETRIEVAL_HEALTH_PORT": "0", "PREMOE_RETRIEVAL_DRAIN_DELAY_S": "2"}
    store = ("--store-url", (tmp_path / "store").as_uri())
    with serving("premoe_retrieval.cli", store, variables) as child:
        yield child


def test_a_process_is_probed_in_plain_text_and_drains_in_peace(retrieval: Child, client_files: TlsFolder) -> None:
    client = tls(client_files)
    with (
        blocking_channel(str(retrieval.ready["health"])) as plain,
        blocking_channel(retrieval.address, tls=client) as secure,
    ):
        probe, direct = health_pb2_grpc.HealthStub(plain), health_pb2_grpc.HealthStub(secure)
        assert probe.Check(Check()).status == SERVING
        assert direct.Check(Check(service="premoe.patterns.v1.PatternService")).status == SERVING
        retrieval.process.terminate()
        while probe.Check(Check()).status == SERVING:
            threading.Event().wait(0.02)
        # Not serving any more, but calls are still taken.
        assert direct.Check(Check()).status == NOT_SERVING
        assert probe.Check(Check(service=LIVENESS)).status == SERVING
    assert retrieval.process.wait(20) == 0
    assert retrieval.stderr().count("\n") == 1, retrieval.stderr()


def test_bad_tls_files_are_one_line_and_exit_code_2(tmp_path: Path, server_files: TlsFolder) -> None:
    arguments = [*server_files.arguments[:4], "--store-url", tmp_path.as_uri()]
    ended = run_to_end("premoe_expert_store.cli", arguments)
    expected = "error: TLS needs a certificate, its key and an authority; --tls-ca is missing\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", expected)


async def test_calls_during_the_drain_delay_are_served_and_later_ones_go_elsewhere(
    authority: Authority, server_files: TlsFolder, client_files: TlsFolder
) -> None:
    """Two servers behind one target: while one of them leaves, no call fails."""
    failed: list[BaseException] = []
    leaving, staying = ScriptedStore(answered), ScriptedStore(answered)
    async with secured(leaving, server_files) as first, secured(staying, server_files) as second:
        target = "ipv4:" + ",".join((first.address, second.address))
        named = tls(client_files, tls_server_name="store.premoe.svc")
        done = False
        async with channel(target, tls=named) as to_either:

            async def load() -> None:
                while not done:
                    try:
                        await manifest(to_either)
                    except grpc.aio.AioRpcError as error:
                        failed.append(error)
                    await asyncio.sleep(0.005)

            loads = [asyncio.create_task(load()) for _ in range(8)]
            await until(lambda: leaving.calls >= 50)
            stopped = asyncio.Event()
            stopped.set()
            await serve_until(stopped, [first], drain_delay_s=0.5)
            before = staying.calls
            await until(lambda: staying.calls >= before + 50)
            done = True
            await asyncio.gather(*loads)
    assert failed == []


def variables(process: str, folder: TlsFolder, **settings: object) -> dict[str, str]:
    """The environment of a pod of ours."""
    values = {**folder.flags, "health_port": 0, **settings}
    return {f"PREMOE_{process}_{name.upper()}": str(value) for name, value in values.items()}


def drain(opened: grpc.Channel) -> object:
    return worker_pb2_grpc.WorkerAdminServiceStub(opened).Drain(worker_pb2.DrainRequest(), timeout=30)


def residency(opened: grpc.Channel) -> object:
    return worker_pb2_grpc.WorkerServiceStub(opened).GetResidency(worker_pb2.GetResidencyRequest(), timeout=30)


def manifest_of(opened: grpc.Channel) -> object:
    return Stub(opened).GetManifest(pb.GetManifestRequest(), timeout=30)


def publish(opened: grpc.Channel) -> object:
    return patterns_pb2_grpc.PatternServiceStub(opened).PublishSet(patterns_pb2.PublishSetRequest(), timeout=30)


@pytest.mark.timeout(300)  # a worker imports torch
def test_a_mesh_of_roles_with_the_store_of_another_release_answers_and_a_stopping_worker_ends_its_stream(
    store_url: str, authority: Authority, tmp_path: Path
) -> None:
    def told(role: str, **settings: object) -> dict[str, str]:
        files = tls_folder(tmp_path / role, authority, "localhost", uris=[f"premoe://m.test/{role}"])
        return variables(role.replace("-", "_").upper(), files, tls_release="m.test", **settings)

    # The expert store is of another release: neither the common name nor the address stands in its certificate.
    files = TlsFolder(tmp_path / "shared")
    shared = authority.issue("shared.test.svc", addresses=(), uris=["premoe://shared.test/expert-store"])
    files.write(shared, authority.pem)
    lent = variables("EXPERT_STORE", files, tls_release="shared.test", tls_guests="m.test")
    root = ("--store-url", store_url)
    with ExitStack() as stack:
        store = stack.enter_context(serving("premoe_expert_store.cli", root, lent))
        retrieval = stack.enter_context(serving("premoe_retrieval.cli", root, told("retrieval")))
        peers = {"store": f"dns:///{store.address}", "retrieval": f"dns:///{retrieval.address}"}
        own = told("worker", **peers, budget="2/4", threads=1, drain_delay_s=2, grace_s=60, model_name="m")
        own |= {"PREMOE_WORKER_STORE_SERVER_NAME": "shared.test.svc"}
        worker = stack.enter_context(serving("premoe_worker.cli", (), {**own, "OMP_WAIT_POLICY": "PASSIVE"}))
        port = worker.address.rpartition(":")[2]
        own = told("gateway", workers=f"dns:///localhost:{port}", retrieval=peers["retrieval"], http_port=0)
        gateway = stack.enter_context(serving("premoe_gateway.cli", (), own))
        for role, address, call in (
            ("gateway", worker.ready["admin"], drain),
            ("gateway", store.address, manifest_of),
            ("worker", retrieval.address, publish),
            ("worker", worker.address, residency),
        ):
            named = "shared.test.svc" if address == store.address else "localhost"
            with blocking_channel(str(address), tls=tls(TlsFolder(tmp_path / role), tls_server_name=named)) as opened:
                with pytest.raises(Forbidden, match=f"^premoe://m.test/{role} may not call "), rpc_errors("it"):
                    call(opened)
        with httpx.Client(base_url=str(gateway.ready["url"]), timeout=60) as client:
            body = {"model": "m", "messages": [{"role": "user", "content": "0123456789"}], "temperature": 0}
            answer = client.post("/v1/chat/completions", json={**body, "max_tokens": 4})
            assert answer.status_code == 200, answer.text
            assert answer.json()["premoe"]["task"] == "digits"
            long = {**body, "max_tokens": 200, "stream": True, "pattern": "generalist"}
            with client.stream("POST", "/v1/chat/completions", json=long) as stream:
                lines = stream.iter_lines()
                assert next(lines).startswith("data: ")
                worker.process.terminate()
                rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]", rest[-1]
        assert worker.process.wait(60) == 0
        assert "error" not in worker.stderr()
