"""Long answers as JSON: the same bytes, in pieces between which others have their turn."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from premoe_gateway.http.documents import PIECE_ITEMS, TURN_CHARACTERS, answer_of, text_of
from starlette.responses import JSONResponse

TOKENS = 20_000


def long_answer() -> dict[str, Any]:
    """A chat answer with the log probabilities of its tokens, as two choices."""
    entry = {"token": "é", "logprob": -0.5, "bytes": [195, 169], "top_logprobs": [{"token": "a", "logprob": -1.5}]}
    choice = {"index": 0, "message": {"content": "é" * TOKENS}, "logprobs": {"content": [entry] * TOKENS}}
    return {"id": "chatcmpl-1", "choices": [choice, {**choice, "index": 1}], "usage": {"total_tokens": TOKENS}}


VALUES: list[Any] = [
    {},
    [],
    {"a": [], "b": {}, "c": None, "é\n": '"', "d": [[], {}, [1.5, True]]},
    {"error": {"message": "x", "code": None}},
    list(range(17)),
    [list(range(300))] * 3,
    [{"a": n} for n in range(2 * PIECE_ITEMS + 1)],
]


@pytest.mark.parametrize("value", VALUES)
async def test_bytes_and_headers_are_those_of_one_block(value: Any) -> None:
    found, expected = await answer_of(value, {"x-a": "b"}), JSONResponse(value, headers={"x-a": "b"})
    assert found.body == expected.body
    assert found.raw_headers == expected.raw_headers


async def test_others_have_their_turn_while_a_long_answer_is_written() -> None:
    value, turns = long_answer(), 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    running = asyncio.ensure_future(other())
    text = await text_of(value)
    running.cancel()
    assert turns >= len(text) // (2 * TURN_CHARACTERS)
    assert len(text) > 100 * TURN_CHARACTERS / 2
    assert text.encode() == JSONResponse(value).body


async def test_numbers_that_no_json_has_are_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        await text_of({"logprobs": [float("nan")] * 100})
