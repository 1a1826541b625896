"""The API client: what it sends, and refusals of the API as failures."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from kubernetes.aio.client import ApiClient, Configuration
from premoe_operator.kube.client import KubernetesApi
from premoe_operator.kube.cluster import ApiFailure, FenceClosed
from premoe_operator.kube.kinds import EVENT, LEASE, POD, SERVICE
from support.api_faults import CannedAnswer

SERVICE_OBJECT = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x", "namespace": "a", "uid": "u"}}


@dataclass(frozen=True)
class Request:
    """One request as it would go out."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: Any
    timeout: Any


class ScriptedClient(ApiClient):
    """The official client, its last step replaced by a function."""

    def __init__(self, answer: Callable[[Request], CannedAnswer]) -> None:
        super().__init__(Configuration(host="https://127.0.0.1:1", api_key={"BearerToken": "Bearer t"}))
        self._answer = answer

    async def call_api(self, method: str, url: str, *args: Any, **options: Any) -> Any:
        headers, body, _ = args
        return self._answer(Request(method, url, headers, body, options["_request_timeout"]))


def answered(code: int, document: object, headers: Mapping[str, str] | None = None) -> CannedAnswer:
    text = document if isinstance(document, str) else json.dumps(document)
    return CannedAnswer(code, text.encode(), headers or {})


def api(answer: Callable[[Request], CannedAnswer], fence: Callable[[], None] = lambda: None) -> KubernetesApi:
    return KubernetesApi(ScriptedClient(answer), fence=fence)


async def test_every_call_says_who_we_are_and_waits_a_limited_time() -> None:
    seen: list[Request] = []

    def answer(request: Request) -> CannedAnswer:
        seen.append(request)
        return answered(200, SERVICE_OBJECT)

    async with api(answer) as cluster:
        await cluster.get(SERVICE, "a", "x")
        await cluster.apply_status(SERVICE_OBJECT)
    assert all(request.headers["User-Agent"] == "premoe-operator" for request in seen)
    for request in seen:
        assert isinstance(request.timeout, aiohttp.ClientTimeout)
        assert request.timeout.connect
        assert request.timeout.sock_read
    assert seen[1].headers["Content-Type"] == "application/apply-patch+yaml"


async def test_a_revision_goes_out_without_blanks() -> None:
    """The API server compares its data byte for byte with what a later patch leaves."""
    seen: list[Request] = []

    def answer(request: Request) -> CannedAnswer:
        seen.append(request)
        return answered(201, revision)

    revision = {**SERVICE_OBJECT, "apiVersion": "apps/v1", "kind": "ControllerRevision", "data": {"a": [1, "ü 😀"]}}
    async with api(answer) as cluster:
        await cluster.create(revision)
    assert seen[0].headers["Content-Type"] == "application/yaml"
    assert seen[0].body.endswith('"data":{"a":[1,"ü 😀"]}}')


async def test_a_server_that_is_not_there_is_a_failure_without_a_code() -> None:
    client = ApiClient(Configuration(host="http://127.0.0.1:1"))
    async with KubernetesApi(client, fence=lambda: None) as cluster:
        with pytest.raises(ApiFailure, match="the API server did not answer") as caught:
            await asyncio.wait_for(cluster.get(SERVICE, "a", "x"), 30)
    assert caught.value.code == 0


async def test_a_create_is_a_post_with_our_name() -> None:
    seen: list[Request] = []

    def answer(request: Request) -> CannedAnswer:
        seen.append(request)
        return answered(201, SERVICE_OBJECT)

    async with api(answer) as cluster:
        assert await cluster.create(SERVICE_OBJECT) == SERVICE_OBJECT
    assert seen[0].method == "POST"
    assert seen[0].url.endswith("/api/v1/namespaces/a/services?fieldManager=premoe-operator")
    assert seen[0].headers["authorization"] == "Bearer t"


async def test_a_deletion_names_the_uid_and_is_done_when_the_object_is_gone() -> None:
    bodies = []

    def answer(request: Request) -> CannedAnswer:
        bodies.append(request.body)
        return answered(404 if len(bodies) == 1 else 409, {"message": "gone"})

    async with api(answer) as cluster:
        await cluster.delete(SERVICE, "a", "x", uid="u")
        await cluster.delete(SERVICE, "a", "x", uid="u")
    assert bodies[0] == {"propagationPolicy": "Background", "preconditions": {"uid": "u"}}


async def test_throttling_is_waited_out_and_given_up_in_the_end() -> None:
    calls = 0

    def answer(request: Request) -> CannedAnswer:
        nonlocal calls
        calls += 1
        return answered(429, {"message": "slow down"}, headers={"Retry-After": "0"})

    async with api(answer) as cluster:
        with pytest.raises(ApiFailure, match="slow down") as caught:
            await cluster.list(SERVICE, None)
    assert (caught.value.code, calls) == (429, 4)


async def test_pages_are_put_together() -> None:
    def answer(request: Request) -> CannedAnswer:
        if "continue=c" in request.url:
            return answered(200, {"metadata": {"resourceVersion": "7"}, "items": [{"metadata": {"name": "b"}}]})
        page = {"metadata": {"resourceVersion": "7", "continue": "c"}, "items": [{"metadata": {"name": "a"}}]}
        return answered(200, page)

    async with api(answer) as cluster:
        listed = await cluster.list(SERVICE, "a", label_selector="x")
    assert [item["metadata"]["name"] for item in listed.items] == ["a", "b"]
    assert listed.items[0]["kind"] == "Service"
    assert listed.version == 7


async def test_a_model_s_pods_are_asked_for_without_pages() -> None:
    """With a limit, API servers before 1.34 would read the whole namespace out of etcd."""
    seen: list[str] = []

    def answer(request: Request) -> CannedAnswer:
        seen.append(request.url)
        return answered(200, {"metadata": {"resourceVersion": "7"}, "items": []})

    async with api(answer) as cluster:
        for kind in (SERVICE, POD):
            await cluster.list(kind, "a", label_selector="x")
    assert ["limit=" in url for url in seen] == [True, False]


async def test_who_owns_an_object_is_looked_at_before_its_first_apply_only() -> None:
    seen: list[str] = []

    def answer(request: Request) -> CannedAnswer:
        seen.append(request.method)
        return answered(200, SERVICE_OBJECT)

    again = {**SERVICE_OBJECT, "metadata": {"name": "x", "namespace": "a", "uid": "v"}}
    async with api(answer) as cluster:
        for _ in range(3):
            await cluster.apply(SERVICE_OBJECT)
        assert seen == ["GET", "PATCH", "PATCH", "PATCH"]
        await cluster.apply(again)
    assert seen[4:] == ["GET", "PATCH"]


async def test_a_closed_fence_stops_writes_and_no_reads() -> None:
    def closed() -> None:
        raise FenceClosed("not ours")

    async with api(lambda request: answered(200, SERVICE_OBJECT), closed) as cluster:
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
        said = {**SERVICE_OBJECT, "apiVersion": EVENT.api_version, "kind": EVENT.name}
        await cluster.create(said)  # an Event does no harm, and the last one may say why


@pytest.mark.parametrize("text", ["<html>bad gateway</html>", "[1]", '"text"'])
async def test_an_answer_that_is_no_status_is_a_failure_all_the_same(text: str) -> None:
    async with api(lambda request: answered(502, text)) as cluster:
        with pytest.raises(ApiFailure) as caught:
            await cluster.get(SERVICE, "a", "x")
    assert caught.value.code == 502
