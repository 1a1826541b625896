"""The adapters: the store's manifest as facts, refusals of the API as failures, and the age of kopf's watches."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
import pytest
from aiohttp import web
from lightkube import KubeConfig
from lightkube.config.kubeconfig import SingleConfig
from lightkube.config.models import Cluster, User
from premoe_operator.decide.observed import PackFacts, StoreFailure, WorkerPreload
from premoe_operator.kube.client import KubernetesApi, load_config
from premoe_operator.kube.cluster import ApiFailure, FenceClosed
from premoe_operator.kube.kinds import LEASE, SERVICE
from premoe_operator.kube.watches import WatchClock, kopf_session
from premoe_operator.run.expert_store import GrpcExpertStore
from premoe_operator.run.workers import GrpcWorkers
from premoe_servicekit.tls import tls_of
from support.blob_pack import write_blob_pack
from support.certificates import Authority, tls_folder
from support.fake_worker import FakeWorker, serving
from support.scripted_store import ScriptedStore, scripted

from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.storage import open_store

SERVICE_OBJECT = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x", "namespace": "a", "uid": "u"}}


def config(server: str = "https://127.0.0.1:1", **user: Any) -> SingleConfig:
    found = KubeConfig.from_one(cluster=Cluster(server=server, insecure=True), user=User(**user)).get()
    assert found is not None
    return found


async def test_facts_of_a_pack(tmp_path: Path) -> None:
    pack = write_blob_pack(open_store(str(tmp_path)))

    async def manifest() -> bytes:
        return pack.manifest.model_dump_json().encode()

    async with scripted(ScriptedStore(manifest)) as server, GrpcExpertStore(timeout_s=5.0, tls=None) as store:
        found = await store.facts(server.address, pack.model_id)
    assert found == PackFacts(
        model_id=pack.model_id,
        family=pack.manifest.family,
        layer_experts=(4, 4),
        top_k=pack.manifest.top_k,
        blob_bytes=pack.manifest.layout.blob_bytes,
    )


async def test_a_store_that_is_not_there_and_one_that_talks_rubbish() -> None:
    async def rubbish() -> bytes:
        return b"{}"

    async with GrpcExpertStore(timeout_s=0.5, tls=None) as store:
        found = await store.facts("127.0.0.1:1", "blake3:00")
        assert isinstance(found, StoreFailure)
        assert found.reason == "StoreUnreachable"
        async with scripted(ScriptedStore(rubbish)) as server:
            found = await store.facts(server.address, "blake3:00")
    assert isinstance(found, StoreFailure)
    assert found.reason == "ManifestNotFound"


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


def api(answer: Callable[[httpx2.Request], httpx2.Response], fence: Callable[[], None] = lambda: None) -> KubernetesApi:
    return KubernetesApi(config(token="t"), fence=fence, transport=httpx2.MockTransport(answer))


async def test_a_create_is_a_post_with_our_name() -> None:
    seen: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(201, json=SERVICE_OBJECT)

    async with api(answer) as cluster:
        assert await cluster.create(SERVICE_OBJECT) == SERVICE_OBJECT
    assert seen[0].method == "POST"
    assert str(seen[0].url).endswith("/api/v1/namespaces/a/services?fieldManager=premoe-operator")
    assert seen[0].headers["Authorization"] == "Bearer t"


async def test_a_deletion_names_the_uid_and_is_done_when_the_object_is_gone() -> None:
    bodies = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        bodies.append(json.loads(request.content))
        return httpx2.Response(404 if len(bodies) == 1 else 409, json={"message": "gone"})

    async with api(answer) as cluster:
        await cluster.delete(SERVICE, "a", "x", uid="u")
        await cluster.delete(SERVICE, "a", "x", uid="u")
    assert bodies[0] == {"propagationPolicy": "Background", "preconditions": {"uid": "u"}}


async def test_throttling_is_waited_out_and_given_up_in_the_end() -> None:
    calls = 0

    def answer(request: httpx2.Request) -> httpx2.Response:
        nonlocal calls
        calls += 1
        return httpx2.Response(429, json={"message": "slow down"}, headers={"Retry-After": "0"})

    async with api(answer) as cluster:
        with pytest.raises(ApiFailure, match="slow down") as caught:
            await cluster.list(SERVICE, None)
    assert (caught.value.code, calls) == (429, 4)


async def test_pages_are_put_together() -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        if "continue" in request.url.params:
            return httpx2.Response(
                200, json={"metadata": {"resourceVersion": "7"}, "items": [{"metadata": {"name": "b"}}]}
            )
        page = {"metadata": {"resourceVersion": "7", "continue": "c"}, "items": [{"metadata": {"name": "a"}}]}
        return httpx2.Response(200, json=page)

    async with api(answer) as cluster:
        listed = await cluster.list(SERVICE, "a", label_selector="x")
    assert [item["metadata"]["name"] for item in listed.items] == ["a", "b"]
    assert listed.items[0]["kind"] == "Service"
    assert listed.version == 7


async def test_a_closed_fence_stops_writes_and_no_reads() -> None:
    def closed() -> None:
        raise FenceClosed("not ours")

    async with api(lambda request: httpx2.Response(200, json=SERVICE_OBJECT), closed) as cluster:
        assert await cluster.get(LEASE, "a", "x") == SERVICE_OBJECT
        for write in (
            cluster.create(SERVICE_OBJECT),
            cluster.apply_status(SERVICE_OBJECT),
            cluster.merge_patch(SERVICE, "a", "x", {}),
            cluster.delete(SERVICE, "a", "x", uid="u"),
            cluster.replace(SERVICE_OBJECT),
            cluster.apply(SERVICE_OBJECT),
        ):
            with pytest.raises(FenceClosed):
                await write


@pytest.mark.parametrize("text", ["<html>bad gateway</html>", "[1]", '"text"'])
async def test_an_answer_that_is_no_status_is_a_failure_all_the_same(text: str) -> None:
    async with api(lambda request: httpx2.Response(502, text=text)) as cluster:
        with pytest.raises(ApiFailure) as caught:
            await cluster.get(SERVICE, "a", "x")
    assert caught.value.code == 502


def test_a_kubeconfig_that_cannot_be_read(tmp_path: Path) -> None:
    broken = tmp_path / "config"
    broken.write_text("clusters: [")
    for file in (tmp_path / "missing", broken):
        with pytest.raises(InvalidInput, match="no Kubernetes connection"):
            load_config(str(file))


async def test_each_watch_is_heard_and_each_list_is_told() -> None:
    async def collection(request: web.Request) -> web.StreamResponse:
        if request.query.get("watch") != "true":
            return web.json_response({"items": []})
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'{"type": "BOOKMARK"}\n')
        now[0] = 5.0
        await response.write(b'{"type": "BOOKMARK"}\n')
        return response

    now = [1.0]
    listed: list[str] = []
    clock = WatchClock(listed.append, clock=lambda: now[0])
    app = web.Application()
    app.router.add_get("/api/v1/services", collection)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    info = kopf_session(config(f"http://127.0.0.1:{port}", token="t"), clock)
    session: aiohttp.ClientSession = info.aiohttp_session
    try:
        async with session.get(f"{info.server}/api/v1/services") as response:
            assert await response.json() == {"items": []}
        assert listed == ["/api/v1/services"]
        assert clock.ages_s() == {}
        async with session.get(f"{info.server}/api/v1/services?watch=true") as response:
            async for _ in response.content.iter_chunked(10):
                pass
        now[0] = 7.5
        assert clock.ages_s() == {"/api/v1/services": 2.5}
        assert session.headers["Authorization"] == "Bearer t"
    finally:
        await session.close()
        await runner.cleanup()


async def test_a_rotated_token_file_is_read_again(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("one\n")
    for text in ("one", "two"):
        token.write_text(text)
        info = kopf_session(config(token_file=str(token)), WatchClock(lambda path: None))
        assert info.aiohttp_session.headers["Authorization"] == f"Bearer {text}"
        await info.aiohttp_session.close()


def test_a_login_by_password_is_refused() -> None:
    with pytest.raises(InvalidInput, match="use a token or a client certificate"):
        kopf_session(config(username="u", password="p"), WatchClock(lambda path: None))
