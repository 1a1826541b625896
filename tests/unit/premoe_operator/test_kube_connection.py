"""Who we are for the API server, for the client and for kopf's watches alike, and the age of those watches."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from kubernetes.aio.client import ApiClient
from premoe_operator.kube import connection as connection_module
from premoe_operator.kube.client import KubernetesApi
from premoe_operator.kube.cluster import ApiFailure
from premoe_operator.kube.connection import load_connection
from premoe_operator.kube.kinds import SERVICE
from premoe_operator.kube.watches import WatchClock, kopf_session

from premoe_runtime.formats.errors import InvalidInput


def kubeconfig(folder: Path, user: dict[str, Any] | None, server: str = "https://127.0.0.1:1", **cluster: Any) -> str:
    """A kubeconfig file, in JSON, which is YAML too."""
    document = {
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", **({} if user is None else {"user": "u"})}}],
        "clusters": [{"name": "c", "cluster": {"server": server, **cluster}}],
        "users": [] if user is None else [{"name": "u", "user": user}],
    }
    file = folder / "config"
    file.write_text(json.dumps(document))
    return str(file)


@asynccontextmanager
async def serving(answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("text", [None, "", "clusters: [", "[]", "contexts: 3", "current-context: nowhere"])
async def test_a_kubeconfig_that_cannot_be_read(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "config"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InvalidInput, match=r"no Kubernetes connection: .") as caught:
        await load_connection(str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("user", "cluster", "message"),
    [
        ({"username": "u", "password": "p"}, {}, "use a token or a client certificate"),
        (None, {}, "no kubeconfig with a context, its cluster and its user"),
        ({}, {}, "no context with a user"),
        ({"token": "t"}, {"tls-server-name": "kubernetes"}, "tls-server-name cannot be set for watches"),
    ],
)
async def test_who_cannot_be_told_to_client_and_watches_alike_is_refused(
    tmp_path: Path, user: dict[str, Any] | None, cluster: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        await load_connection(kubeconfig(tmp_path, user, **cluster))


async def test_without_a_file_named_the_environment_names_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", kubeconfig(tmp_path, {"token": "t"}, "https://cluster.example"))
    assert (await load_connection()).configuration.host == "https://cluster.example"


async def test_a_rotated_token_file_is_read_again_by_watches_and_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every log-in of kopf's, and by the client once the token has the age."""
    seen: list[str | None] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append(request.headers.get("Authorization"))
        return web.json_response({"metadata": {}, "items": []})

    token = tmp_path / "token"
    token.write_text("one\n")
    async with serving(answer) as server:
        connection = await load_connection(kubeconfig(tmp_path, {"tokenFile": str(token)}, server))
        async with KubernetesApi(ApiClient(connection.configuration), fence=lambda: None) as cluster:
            await cluster.list(SERVICE, "a")
            token.write_text("two\n")
            await cluster.list(SERVICE, "a")
            monkeypatch.setattr(connection_module, "TOKEN_AGE_S", 0.0)
            await cluster.list(SERVICE, "a")
        assert seen == ["Bearer one", "Bearer one", "Bearer two"]
        token.write_text("three\n")
        info = await kopf_session(connection, WatchClock(lambda path: None))
        assert info.aiohttp_session.headers["Authorization"] == "Bearer three"
        await info.aiohttp_session.close()


async def test_a_token_file_that_is_gone_fails_calls_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    token.write_text("one")
    connection = await load_connection(kubeconfig(tmp_path, {"tokenFile": str(token)}))
    token.unlink()
    monkeypatch.setattr(connection_module, "TOKEN_AGE_S", 0.0)
    async with KubernetesApi(ApiClient(connection.configuration), fence=lambda: None) as cluster:
        with pytest.raises(ApiFailure, match="the API server did not answer: InvalidInput: no Kubernetes connection"):
            await cluster.list(SERVICE, "a")


@pytest.mark.parametrize("through_proxy", [True, False])
async def test_a_proxy_holds_for_client_and_watches_or_for_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, through_proxy: bool
) -> None:
    seen: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append(request.raw_path)
        return web.json_response({"metadata": {}, "items": []})

    async with serving(answer) as proxy:
        host = proxy.removeprefix("http://")
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, proxy)
        monkeypatch.setenv("no_proxy", "" if through_proxy else host.partition(":")[0])
        server = "http://api.cluster.example" if through_proxy else proxy
        connection = await load_connection(kubeconfig(tmp_path, {"token": "t"}, server))
        async with KubernetesApi(ApiClient(connection.configuration), fence=lambda: None) as cluster:
            await cluster.list(SERVICE, "a")
        info = await kopf_session(connection, WatchClock(lambda path: None))
        session: aiohttp.ClientSession = info.aiohttp_session
        async with session, session.get(f"{info.server}/api/v1/services") as response:
            await response.read()
    assert [path.startswith("http://") for path in seen] == [through_proxy, through_proxy]


async def test_each_watch_is_heard_and_each_list_is_told(tmp_path: Path) -> None:
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
    async with serving(collection) as server:
        info = await kopf_session(await load_connection(kubeconfig(tmp_path, {"token": "t"}, server)), clock)
        session: aiohttp.ClientSession = info.aiohttp_session
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
        await session.close()
