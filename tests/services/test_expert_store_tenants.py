"""Tenants of one expert store over mutual TLS, as real processes see each other."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import grpc
import pytest
from premoe.experts.v1 import experts_pb2 as pb
from premoe.experts.v1 import experts_pb2_grpc
from premoe_dataplane.wire import experts_to_wire
from premoe_servicekit.clients import channel
from premoe_servicekit.errors import rpc_errors
from premoe_servicekit.roles import Role, identity
from premoe_servicekit.tls import Tls, tls_of
from support.blob_pack import BlobPack, write_blob_pack
from support.certificates import Authority, tls_folder
from support.processes import Child, serving

from premoe_runtime.formats.errors import NotFound
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.packs.place import tenant_root
from premoe_runtime.storage import open_store

RELEASE = "premoe.serving"
EXPERT = ExpertId(0, 1)
BLOB = 3 << 20

Holder = Callable[[str], Tls]


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def worker(tmp_path: Path, authority: Authority) -> Holder:
    """The files of a worker of a tenant, as the operator has them issued; of none for an empty name."""

    def made(tenant: str) -> Tls:
        uris = [identity(RELEASE, Role.WORKER, name) for name in {"", tenant}]
        found = tls_of(tls_folder(tmp_path / f"worker-{tenant}", authority, uris=uris).settings())
        assert found is not None
        return found

    return made


@pytest.fixture
def own(tmp_path: Path) -> BlobPack:
    """A pack of acme's."""
    return write_blob_pack(open_store(tenant_root(f"file://{tmp_path / 'store'}", "acme")), blob_bytes=BLOB)


@pytest.fixture
def flags(tmp_path: Path, authority: Authority, own: BlobPack) -> list[str]:
    files = tls_folder(tmp_path / "server", authority, uris=[identity(RELEASE, Role.EXPERT_STORE)])
    return [
        "--store-url",
        f"file://{tmp_path / 'store'}",
        "--http-port",
        "0",
        *files.arguments,
        "--tls-release",
        RELEASE,
    ]


@pytest.fixture
def store(flags: list[str]) -> Iterator[Child]:
    with serving("premoe_expert_store.cli", flags) as running:
        yield running


async def address_of(child: Child, pack: BlobPack, tls: Tls) -> str:
    async with channel(child.address, tls=tls) as opened:
        request = pb.ResolveRequest(model_id=pack.model_id, experts=experts_to_wire([EXPERT]), schemes=["http"])
        with rpc_errors("the store"):
            answer = await experts_pb2_grpc.ExpertStoreServiceStub(opened).Resolve(request)
        return answer.blobs[0].sources[0].url


async def get(address: str, tls: Tls | None, ca: Path) -> tuple[int, bytes]:
    context = ssl.create_default_context(cafile=ca)
    if tls is not None:
        context.load_cert_chain(tls.cert, tls.key)
    async with aiohttp.ClientSession() as client, client.get(address, ssl=context) as answer:
        return answer.status, await answer.read()


async def test_a_tenants_blobs_come_to_its_workers_alone(store: Child, own: BlobPack, worker: Holder) -> None:
    acme, other, nobody = worker("acme"), worker("other"), worker("")
    for stranger in (other, nobody):
        with pytest.raises(NotFound, match="no pack"):
            await address_of(store, own, stranger)
    address = await address_of(store, own, acme)
    assert address.startswith("https://")
    for _ in ("arriving", "whole"):
        assert await get(address, acme, acme.ca) == (200, own.blobs[EXPERT])
    for stranger in (other, nobody):
        status, line = await get(address, stranger, acme.ca)
        assert (status, line) == (403, b"CALLER_REFUSED: this address is of another tenant\n")
    with pytest.raises(aiohttp.ClientError):
        await get(address, None, acme.ca)


async def test_a_role_that_reads_no_blobs_has_no_use_for_an_address(
    store: Child, own: BlobPack, worker: Holder, tmp_path: Path, authority: Authority
) -> None:
    address = await address_of(store, own, worker("acme"))
    gateway = tls_of(tls_folder(tmp_path / "gateway", authority, uris=[identity(RELEASE, Role.GATEWAY)]).settings())
    assert gateway is not None
    status, line = await get(address, gateway, gateway.ca)
    assert status == 403
    assert b"may not read blobs over HTTP; the port takes admin, expert-store, worker of premoe.serving" in line


async def test_blobs_may_be_plain_while_calls_are_not(flags: list[str], own: BlobPack, worker: Holder) -> None:
    with serving("premoe_expert_store.cli", [*flags, "--http-plain"]) as child:
        address = await address_of(child, own, worker("acme"))
        assert address.startswith("http://")
        async with aiohttp.ClientSession() as client, client.get(address) as answer:
            assert (answer.status, await answer.read()) == (200, own.blobs[EXPERT])
        async with channel(child.address) as opened:
            call = experts_pb2_grpc.ExpertStoreServiceStub(opened).GetManifest(pb.GetManifestRequest(), timeout=30)
            assert await call.code() is grpc.StatusCode.UNAVAILABLE
