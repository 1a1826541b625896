"""What the operator asks of store and workers by gRPC."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from premoe_operator.decide.observed import PackFacts, StoreFailure, WorkerPreload
from premoe_operator.run.expert_store import GrpcExpertStore
from premoe_operator.run.workers import GrpcWorkers
from premoe_servicekit.tls import tls_of
from support.blob_pack import write_blob_pack
from support.certificates import Authority, tls_folder
from support.fake_worker import FakeWorker, serving
from support.scripted_store import ScriptedStore, scripted

from premoe_runtime.storage import open_store


async def test_facts_of_a_pack(tmp_path: Path) -> None:
    pack = write_blob_pack(open_store(str(tmp_path)))

    async def manifest() -> bytes:
        return pack.manifest.model_dump_json().encode()

    async with scripted(ScriptedStore(manifest)) as server:
        found = await GrpcExpertStore("", timeout_s=5.0, tls=None).facts(server.address, pack.model_id)
    assert found == PackFacts(
        model_id=pack.model_id,
        family=pack.manifest.family,
        layer_experts=(4, 4),
        top_k=pack.manifest.top_k,
        blob_bytes=pack.manifest.layout.blob_bytes,
        skeleton_bytes=sum(file.num_bytes for file in pack.manifest.skeleton),
    )


async def test_a_store_that_is_not_there_and_one_that_talks_rubbish() -> None:
    async def rubbish() -> bytes:
        return b"{}"

    store = GrpcExpertStore("", timeout_s=0.5, tls=None)
    found = await store.facts("127.0.0.1:1", "blake3:00")
    assert isinstance(found, StoreFailure)
    assert found.reason == "StoreUnreachable"
    async with scripted(ScriptedStore(rubbish)) as server:
        found = await store.facts(server.address, "blake3:00")
    assert isinstance(found, StoreFailure)
    assert found.reason == "ManifestNotFound"


@pytest.mark.parametrize(("is_own", "expected"), [(True, "StoreUnreachable"), (False, "ManifestNotFound")])
async def test_a_store_of_another_release_is_known_by_its_own_name(tmp_path: Path, is_own: bool, expected: str) -> None:
    """The own one carries the name of the release, which this one does not."""

    async def rubbish() -> bytes:
        return b"{}"

    authority = Authority()
    files = tls_folder(tmp_path / "server", authority)
    tls = tls_of(tls_folder(tmp_path / "client", authority).settings(tls_server_name="premoe.serving.svc"))
    async with scripted(ScriptedStore(rubbish), files.settings()) as server:
        store = GrpcExpertStore(server.address if is_own else "", timeout_s=20.0, tls=tls)
        found = await store.facts(server.address, "blake3:00")
    assert isinstance(found, StoreFailure)
    assert found.reason == expected


async def test_a_store_that_refuses_the_operator_says_who_may_call(tmp_path: Path) -> None:
    authority = Authority()
    files = tls_folder(tmp_path / "server", authority)
    tls = tls_of(tls_folder(tmp_path / "client", authority, uris=["premoe://other.models/operator"]).settings())
    async with scripted(ScriptedStore(), files.settings(tls_release="premoe.serving")) as server:
        found = await GrpcExpertStore("", timeout_s=20.0, tls=tls).facts(server.address, "blake3:00")
    assert isinstance(found, StoreFailure)
    assert found.reason == "StoreUnreachable"
    assert "premoe://other.models/operator may not call GetManifest of" in found.message


NAME = "chat-worker.a.svc"


async def here(host: str, port: int) -> list[str]:
    assert host == NAME
    return ["127.0.0.1"]


@pytest.mark.parametrize("encrypted", [False, True])
async def test_workers_say_what_they_keep_resident(tmp_path: Path, encrypted: bool) -> None:
    worker = FakeWorker(preload=("add", "rev"), preloaded=("add",), preload_problem="4 slots a layer hold 1 of 2")
    authority = Authority()
    server_settings = tls_folder(tmp_path / "server", authority, NAME).settings(port=0) if encrypted else None
    tls = tls_of(tls_folder(tmp_path / "client", authority, "operator.premoe.svc").settings())
    workers = GrpcWorkers(timeout_s=10.0, tls=tls, lookup=here)
    async with serving(worker, settings=server_settings) as server:
        found = await workers.preloads(NAME, int(server.address.rpartition(":")[2]), encrypted=encrypted)
    assert found == (WorkerPreload(("add", "rev"), ("add",), "4 slots a layer hold 1 of 2"),)


async def test_workers_that_do_not_answer_and_a_name_without_any() -> None:
    workers = GrpcWorkers(timeout_s=0.3, tls=None, lookup=here)
    (found,) = await workers.preloads(NAME, 1, encrypted=False)
    assert not found.has_answered
    assert found.problem.startswith("worker 127.0.0.1:1 did not answer: ")

    async def unknown(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    (found,) = await GrpcWorkers(timeout_s=5.0, tls=None, lookup=unknown).preloads(NAME, 1, encrypted=False)
    assert not found.has_answered
    assert found.problem == f"{NAME} cannot be looked up: Name or service not known"

    async def silent(host: str, port: int) -> list[str]:
        await asyncio.sleep(60)
        return []

    (found,) = await GrpcWorkers(timeout_s=0.1, tls=None, lookup=silent).preloads(NAME, 1, encrypted=False)
    assert found.problem == f"{NAME} cannot be looked up: no answer in time"
