"""Verifiers that are models: the operator's file, and endpoints that answer well, badly, or never."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from premoe_gateway.search.order import Judged
from premoe_gateway.search.verifiers.model import Endpoints, ModelVerifier
from premoe_gateway.search.verifiers.named import NamedVerifier, NamedVerifiers
from premoe_gateway.search.verifiers.opening import Verifiers

from premoe_runtime.formats.errors import InvalidInput, NotFound, Unavailable

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def endpoint(handler: Handler) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", handler)
    app.router.add_post("/elsewhere", says("10"))
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


def says(content: object) -> Handler:
    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"choices": [{"message": {"content": content}}]})

    return answer


async def judged(handler: Handler, **fields: Any) -> float:
    endpoints = Endpoints()
    try:
        async with endpoint(handler) as url:
            named = NamedVerifier(name="judge", url=url, model="big", **fields)
            return await ModelVerifier(named, endpoints.of(named), "5 + 7?").score("12")
    finally:
        await endpoints.close()


async def test_it_is_asked_for_a_mark_with_its_key(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret\n")
    seen: list[tuple[str, dict[str, Any]]] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append((request.headers["authorization"], await request.json()))
        return await says("Mark: 7 of 10")(request)

    assert await judged(answer, key_file=str(tmp_path / "key")) == 0.7
    ((authorization, body),) = seen
    assert authorization == "Bearer secret"
    assert (body["model"], body["temperature"]) == ("big", 0)
    assert body["messages"][-1]["content"] == "Question:\n5 + 7?\n\nAnswer:\n12"


async def redirects(request: web.Request) -> web.StreamResponse:
    raise web.HTTPTemporaryRedirect("/elsewhere")


async def breaks(request: web.Request) -> web.StreamResponse:
    return web.json_response({}, status=500)


async def hangs(request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def floods(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b"7" * 65536)


BAD: dict[str, tuple[Handler, str]] = {
    "it redirects": (redirects, "answers with status 307"),
    "it breaks": (breaks, "answers with status 500"),
    "no mark": (says("very good"), "no mark"),
    "too high a mark": (says("11"), "no mark"),
    "no text": (says(None), "no mark"),
    "it floods": (floods, "no mark"),
    "it never answers": (hangs, ""),
}


@pytest.mark.parametrize("name", BAD)
async def test_what_is_no_mark_is_said_in_one_line_without_the_address(name: str) -> None:
    handler, words = BAD[name]
    with pytest.raises((Unavailable, TimeoutError)) as caught:
        await judged(handler, timeout_s=0.2 if handler is hangs else 60)
    if words:
        assert f"verifier judge {words}" in str(caught.value) or words in str(caught.value)
    assert "127.0.0.1" not in str(caught.value)


async def test_nobody_listens() -> None:
    named = NamedVerifier(name="judge", url="http://127.0.0.1:1/v1", model="big")
    endpoints = Endpoints()
    with pytest.raises(Unavailable, match=r"^verifier judge does not answer$"):
        await ModelVerifier(named, endpoints.of(named), "").score("12")
    await endpoints.close()


def written(path: Path, *verifiers: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"verifiers": verifiers}))
    return path


GOOD = {"name": "judge", "url": "http://judge/v1", "model": "big"}


async def test_requests_find_them_by_name(tmp_path: Path) -> None:
    verifiers = Verifiers(NamedVerifiers(written(tmp_path / "v.json", GOOD)))
    assert isinstance(await verifiers.of(Judged("judge"), "q"), ModelVerifier)
    with pytest.raises(NotFound, match="no verifier 'jduge'; there is judge"):
        await verifiers.of(Judged("jduge"), "q")
    await verifiers.close()


@pytest.mark.parametrize(
    ("verifiers", "words"),
    [
        ([GOOD, GOOD], "2 verifiers are called judge"),
        ([{**GOOD, "url": "judge:8000"}], "verifiers.0.url"),
        ([{**GOOD, "timeout_s": 0}], "verifiers.0.timeout_s"),
        ([{**GOOD, "key_file": "/nowhere/key"}], "no key in the file /nowhere/key"),
        ([{**GOOD, "key_env": "PREMOE_NO_SUCH_KEY"}], "no key in the variable PREMOE_NO_SUCH_KEY"),
        ([{**GOOD, "key": "in the open"}], "verifiers.0.key"),
    ],
)
def test_a_file_that_is_no_good_is_one_line(tmp_path: Path, verifiers: list[dict[str, Any]], words: str) -> None:
    path = written(tmp_path / "v.json", *verifiers)
    with pytest.raises(InvalidInput) as caught:
        NamedVerifiers(path)
    assert caught.value.reason == "VERIFIERS_INVALID"
    assert words in str(caught.value)
    assert "in the open" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        NamedVerifiers(tmp_path / "none.json")
