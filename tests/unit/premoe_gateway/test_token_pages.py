"""/tokenize, /detokenize and /docs over HTTP, with a worker's double behind them."""

from __future__ import annotations

import threading
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest
from premoe_gateway.http.app import create_app
from premoe_gateway.http.bodies import parsed
from premoe_gateway.openai.description import description
from premoe_gateway.service import Gateway
from support.gateway_doubles import MODEL, EchoWorker, OneTask


@pytest.fixture
async def http() -> Any:
    gateway = Gateway([EchoWorker()], OneTask(), on_unknown=None, timeout_s=30)
    await gateway.refresh()
    transport = httpx.ASGITransport(create_app(gateway))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


@pytest.mark.parametrize("model", [{}, {"model": MODEL}])
async def test_there_and_back(http: httpx.AsyncClient, model: dict[str, str]) -> None:
    answer = await http.post("/tokenize", json={"prompt": "hé", "return_token_strs": True, **model})
    found = answer.json()
    assert (found["count"], found["max_model_len"], found["tokens"]) == (3, 64, [0x68, 0xC3, 0xA9])
    assert len(found["token_strs"]) == 2
    assert (await http.post("/tokenize", json={"prompt": "h"})).json()["token_strs"] is None
    back = await http.post("/detokenize", json={"tokens": found["tokens"], **model})
    assert back.json() == {"prompt": "hé"}


async def test_a_conversation_has_tools_and_template_arguments(http: httpx.AsyncClient) -> None:
    tool = {"type": "function", "function": {"name": "add"}}
    body = {
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [tool],
        "chat_template_kwargs": {"enable_thinking": False},
    }
    found = (await http.post("/tokenize", json=body)).json()
    assert bytes(found["tokens"]).decode() == 'chat{"enable_thinking": false}'


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {"prompt": 5}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "model": "other"}, 404, None),
        ("/tokenize", {"prompt": "a", "chat_template_kwargs": {"enable_thinking": False}}, 400, "chat_template_kwargs"),
        ("/tokenize", {"prompt": "a", "tools": []}, 400, "tools"),
        (
            "/tokenize",
            {"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"a": []}},
            400,
            "chat_template_kwargs",
        ),
        ("/detokenize", {}, 400, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, 400, "tokens"),
        ("/detokenize", {"tokens": [1], "fancy": 1}, 400, "fancy"),
    ],
)
async def test_what_is_wrong_is_named(
    http: httpx.AsyncClient, path: str, body: dict[str, Any], status: int, param: str | None
) -> None:
    answer = await http.post(path, json=body)
    assert answer.status_code == status
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize(("path", "param"), [("/detokenize", "tokens"), ("/v1/completions", "prompt")])
async def test_more_ids_than_any_context_holds_are_refused(http: httpx.AsyncClient, path: str, param: str) -> None:
    body = b'{"model":"m","%s":[%s]}' % (param.encode(), b",".join([b"1"] * 1_200_000))
    answer = await http.post(path, content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_long_bodies_are_read_beside_the_loop() -> None:
    def where(body: bytes) -> int:
        return threading.get_ident()

    assert await parsed(where, b"{}") == threading.get_ident()
    assert await parsed(where, b" " * (300 << 10)) != threading.get_ident()


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


async def test_the_page_names_every_path_and_field_and_loads_nothing(http: httpx.AsyncClient) -> None:
    answer = await http.get("/docs")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    parsed = Links()
    parsed.feed(answer.text)
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in parsed.tags}
    assert [attributes["href"] for tag, attributes in parsed.tags if tag == "a"] == ["openapi.json"]
    for path, methods in description(None, {})["paths"].items():
        assert path in answer.text
        for operation in methods.values():
            if "requestBody" in operation:
                for field in operation["requestBody"]["content"]["application/json"]["schema"]["properties"]:
                    assert field in answer.text
