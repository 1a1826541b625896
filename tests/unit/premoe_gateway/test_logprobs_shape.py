"""Log probabilities in OpenAI's two shapes, and answers that begin with their prompt."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Literal

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from premoe_gateway.domain import (
    Ask,
    Delta,
    Event,
    Finished,
    PatternChoice,
    PlaceLogprobs,
    Started,
    Swap,
    TokenLogprob,
)
from premoe_gateway.echo import Echo, echoed
from premoe_gateway.http.app import create_app
from premoe_gateway.openai.logprobs import Likelihoods, Shape, grow
from premoe_gateway.service import Gateway
from support.gateway_doubles import MODEL, EchoWorker, OneTask


def place(text: bytes, logprob: float | None = -0.5, *, special: bool = False, top: int = 0) -> PlaceLogprobs:
    others = [TokenLogprob(b"t%d" % number, False, -1.0 - number) for number in range(top)]
    return PlaceLogprobs(TokenLogprob(text, special, logprob), tuple(others))


def test_a_chat_s_entries() -> None:
    shape = Shape("chat").of([place(b" a", top=1), place("é".encode()[:1]), place(b"", float("-inf"))])
    assert shape == {
        "content": [
            {
                "token": " a",
                "logprob": -0.5,
                "bytes": [32, 97],
                "top_logprobs": [{"token": "t0", "logprob": -1.0, "bytes": [116, 48]}],
            },
            {"token": "bytes:\\xc3", "logprob": -0.5, "bytes": [0xC3], "top_logprobs": []},
            {"token": "", "logprob": -9999.0, "bytes": [], "top_logprobs": []},
        ],
        "refusal": None,
    }


def test_a_completion_s_lists() -> None:
    shape = Shape("text", "é!").of([place("é".encode(), None), place(b"!", top=1), place(b"t0", top=1)])
    assert shape == {
        "tokens": ["é", "!", "t0"],
        "token_logprobs": [None, -0.5, -0.5],
        "top_logprobs": [None, {"t0": -1.0, "!": -0.5}, {"t0": -1.0}],
        "text_offset": [0, 1, 2],
    }


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_pieces_make_the_object_of_the_whole(kind: Literal["chat", "text"]) -> None:
    places = [place(b"a", None), place(b"\xc3", top=2), place(b"\xa9"), place(b"<s>", special=True), place(b"b")]
    shape = Shape(kind, "a")
    told = shape.of(())
    for start in range(0, len(places), 2):
        grow(told, shape.of(places[start : start + 2]))
    assert told == Shape(kind, "a").of(places)


async def test_those_of_a_long_prompt_are_shaped_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two pieces streams of others go on."""
    pieces, of = [], Shape.of

    def counted(shape: Shape, places: Sequence[PlaceLogprobs]) -> Likelihoods:
        pieces.append(len(places))
        return of(shape, places)

    monkeypatch.setattr(Shape, "of", counted)
    gateway = Gateway([LongPrompt()], OneTask(), on_unknown=None, timeout_s=30)
    await gateway.refresh()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(gateway)), base_url="http://gateway") as http:
        body = {"model": MODEL, "prompt": [65] * 4, "echo": True, "logprobs": 1, "max_tokens": 0}
        answer = (await http.post("/v1/completions", json=body)).json()
    assert len(answer["choices"][0]["logprobs"]["tokens"]) == 10 * 256
    assert max(pieces) == 256


class LongPrompt(EchoWorker):
    """Says as much of its prompt as a worker does at a time, ten times."""

    async def generate(self, ask: Ask, choice: PatternChoice, timeout_s: float) -> AsyncGenerator[Event, None]:
        yield Started(choice, 2560, Swap(0, 0, 0.0))
        for _ in range(10):
            yield Delta("", prompt_logprobs=(place(b"A", top=1),) * 256)
        yield Finished("stop", 2560, 1, 1.0, 0.0, 0.0)


def test_special_tokens_take_room_only_where_the_prompt_names_them() -> None:
    begin, end = place(b"<s>", special=True), place(b"</s>", special=True)
    places = [begin, place(b"a"), end, place(b"b"), end]
    assert Shape("text", "a</s>").of(places)["text_offset"] == [0, 0, 1, 5, 6]
    assert Shape("text").of(places)["text_offset"] == [0, 0, 1, 1, 2]


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), st.data())
def test_offsets_lie_where_the_text_of_a_token_begins_however_it_is_cut(text: str, data: st.DataObject) -> None:
    whole, pieces = text.encode(), []
    while whole:
        size = data.draw(st.integers(1, 5))
        pieces.append(whole[:size])
        whole = whole[size:]
    shape = Shape("text")
    offsets: list[object] = []
    for piece in pieces:
        found = shape.of([place(piece)])["text_offset"]
        assert isinstance(found, list)
        offsets += found
    before = b""
    for piece, offset in zip(pieces, offsets, strict=True):
        assert offset == len(before.decode(errors="ignore"))
        before += piece


def test_bytes_that_no_token_completes_have_their_place() -> None:
    places = [place(b"a"), place(b"\xc3"), place(b"<s>", special=True), place(b"b"), place(b"\xa9"), place(b"c")]
    # As text: "a\ufffdb\ufffdc".
    assert Shape("text").of(places)["text_offset"] == [0, 1, 1, 2, 3, 4]


ENDED = Finished("stop", 3, 2, 1.0, 0.0, 0.0)


async def answer() -> AsyncGenerator[Event, None]:
    yield Started(PatternChoice("full"), 3, Swap(0, 0, 0.0))
    yield Delta("", prompt_logprobs=(place(b"p"),))
    yield Delta("text", (place(b"t"),))
    yield ENDED


@pytest.mark.parametrize(
    ("echo", "text", "tokens", "last"),
    [
        ("prompt", "prompt text", [b"p", b"t"], ENDED),
        ("only", "prompt ", [b"p"], Finished("length", 3, 0, 1.0, 0.0, 0.0)),
    ],
)
async def test_an_echo_is_the_answer_s_first_text(echo: Echo, text: str, tokens: list[bytes], last: Finished) -> None:
    events = [event async for event in echoed(answer(), "prompt ", echo)]
    deltas = [event for event in events if isinstance(event, Delta)]
    assert "".join(delta.text for delta in deltas) == text
    assert [each.chosen.text for delta in deltas for each in delta.logprobs] == tokens
    assert events[-1] == last
