"""Whose packs, leases and addresses somebody gets."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest
from premoe_dataplane.signing import BLOBS, Signer
from premoe_expert_store.cache import NodeCache, private_folder
from premoe_expert_store.catalogue import Catalogue
from premoe_expert_store.service import ExpertStore
from premoe_expert_store.shelf import Shelf
from premoe_expert_store.sources import Ways
from premoe_servicekit.roles import SHARED, Caller
from support.blob_pack import BlobPack, write_blob_pack

from premoe_runtime.formats.errors import InvalidInput, NotFound
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.packs.place import tenant_root
from premoe_runtime.storage import LocalStore, open_store

ACME, OTHER, OPERATOR = Caller("acme"), Caller("other"), Caller(anywhere=True)
EXPERT = ExpertId(0, 1)
SIGNER = Signer(lambda: (b"k" * 32,))


@pytest.fixture
def root(tmp_path: Path) -> str:
    return f"file://{tmp_path / 'store'}"


@pytest.fixture
def shared(root: str) -> BlobPack:
    return write_blob_pack(open_store(root), seed=1)


@pytest.fixture
def own(root: str) -> BlobPack:
    """A pack of acme's."""
    return write_blob_pack(open_store(tenant_root(root, "acme")), seed=2)


@pytest.fixture
async def service(root: str) -> AsyncIterator[ExpertStore]:
    store = open_store(root)
    shelf = Shelf(store, NodeCache(private_folder(1 << 20), 1 << 20))
    service = ExpertStore(Catalogue(store), shelf, Ways(SIGNER, "http://here:80"), window_bytes=1 << 20)
    yield service
    await service.close()


async def test_a_tenant_sees_its_own_packs_and_the_shared_ones(
    service: ExpertStore, shared: BlobPack, own: BlobPack
) -> None:
    for model_id in (own.model_id, f"blake3:{own.model_id}", f"acme/{own.model_id}", f"acme/blake3:{own.model_id}", ""):
        pack = await service.pack(model_id, ACME)
        assert (pack.manifest.model_id, pack.tenant) == (own.model_id, "acme")
    for caller in (ACME, OTHER, SHARED, OPERATOR):
        assert (await service.pack(shared.model_id, caller)).tenant == ""
    for caller in (OTHER, SHARED):
        assert (await service.pack("", caller)).manifest.model_id == shared.model_id


@pytest.mark.parametrize("caller", [OTHER, SHARED, Caller("acm"), Caller("acme2")])
@pytest.mark.parametrize("known", [False, True], ids=["cold", "after its owner"])
async def test_nobody_else_gets_at_a_tenants_pack_by_any_call(
    service: ExpertStore, shared: BlobPack, own: BlobPack, caller: Caller, known: bool
) -> None:
    if known:
        await service.pack(own.model_id, ACME)

    async def file() -> None:
        async with aclosing(service.fetch_file(name, "skeleton/config.json", caller)) as frames:
            await anext(frames)

    async def blobs() -> None:
        async with aclosing(service.fetch(name, [EXPERT], 0, caller)) as frames:
            await anext(frames)

    async def watch() -> None:
        async with aclosing(service.watch(name, caller)) as events:
            await anext(events)

    for name in (own.model_id, f"acme/{own.model_id}"):
        for call in (
            service.pack(name, caller),
            service.resolve(name, [EXPERT], ["http"], caller),
            service.prefetch(name, [EXPERT], caller),
            file(),
            blobs(),
            watch(),
        ):
            with pytest.raises(NotFound) as caught:
                await call
            assert caught.value.reason == "MODEL_NOT_FOUND"
            assert "other tenant" not in str(caught.value), "that it is there is told to nobody"


async def test_an_operator_names_the_tenant(service: ExpertStore, shared: BlobPack, own: BlobPack) -> None:
    assert (await service.pack(f"acme/{own.model_id}", OPERATOR)).tenant == "acme"
    with pytest.raises(NotFound):
        await service.pack(own.model_id, OPERATOR)
    with pytest.raises(NotFound):
        await service.pack(f"acme/{shared.model_id}", OPERATOR)


@pytest.mark.parametrize("name", ["ACME/x", "../x", "a/b/x", "/x", "acme/", "a.b/x"])
async def test_what_is_no_tenant_is_refused(service: ExpertStore, shared: BlobPack, name: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        await service.pack(name, OPERATOR)
    assert caught.value.reason == "ID_INVALID"


async def test_one_pack_may_be_of_a_tenant_and_of_all(root: str, service: ExpertStore, own: BlobPack) -> None:
    assert (await service.pack(own.model_id, ACME)).folder.startswith("tenants/acme/")
    write_blob_pack(open_store(root), seed=2)
    assert (await service.pack(own.model_id, OTHER)).folder == f"models/{own.model_id}"


async def test_addresses_say_whose_blob_it_is(service: ExpertStore, shared: BlobPack, own: BlobPack) -> None:
    for pack, tenant in ((shared, ""), (own, "acme")):
        plan = await service.resolve(pack.model_id, [EXPERT], ["http"], ACME)
        parts = urlsplit(plan.blobs[0].sources[0].url)
        name = SIGNER.check(parts.path.removeprefix(BLOBS), dict(parse_qsl(parts.query)))
        assert (name.model_id, name.tenant) == (pack.model_id, tenant)


async def test_a_lease_is_its_tenants(service: ExpertStore, shared: BlobPack) -> None:
    plan = await service.resolve(shared.model_id, [EXPERT], [], ACME)
    for caller in (OTHER, SHARED, OPERATOR):
        service.release(plan.lease_id, caller)
        with pytest.raises(NotFound) as caught:
            service.renew(plan.lease_id, caller)
        assert caught.value.reason == "LEASE_ENDED"
    assert service.renew(plan.lease_id, ACME) >= plan.expires_at
    service.release(plan.lease_id, ACME)
    with pytest.raises(NotFound):
        service.renew(plan.lease_id, ACME)


async def test_a_manifest_is_read_once_however_many_want_it(tmp_path: Path, shared: BlobPack) -> None:

    class Counting(LocalStore):
        gate, reads = threading.Event(), 0

        def get(self, path: str) -> bytes:
            self.reads += path.endswith("manifest.json")
            self.gate.wait()
            return super().get(path)

    store = Counting(tmp_path / "store")
    catalogue = Catalogue(store)
    asked = [asyncio.ensure_future(catalogue.pack(shared.model_id)) for _ in range(64)]
    asked[0].cancel()
    await asyncio.sleep(0)
    store.gate.set()
    packs = await asyncio.gather(*asked[1:])
    assert all(pack is packs[0] for pack in packs)
    assert store.reads == 1
