"""Log probabilities of a long prompt hold up no other request."""

from __future__ import annotations

import asyncio
from typing import cast

from premoe_worker.logprobs import of_prompt

from premoe_runtime.engines.base import Logprobs
from premoe_runtime.engines.hf.token_bytes import TokenBytes


class Letters:
    def of(self, token_id: int, *, first: bool = False) -> bytes:
        return b"^a" if first else b"a"

    def is_special(self, token_id: int) -> bool:
        return token_id == 0


async def test_others_have_their_turn_between_its_parts() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(other())
    tokens = (0, *([5] * 1023))
    found = [Logprobs(token, -1.0, ()) for token in tokens[1:]]
    parts = [part.prompt_logprobs async for part in of_prompt(cast(TokenBytes, Letters()), tokens, found)]
    beside.cancel()
    assert [len(part) for part in parts] == [256] * 4
    assert turns >= 3
    chosen = [place.chosen for part in parts for place in part]
    assert [token.token_id for token in chosen] == list(tokens)
    assert [token.text for token in chosen[:3]] == [b"a", b"^a", b"a"]
    assert (chosen[0].logprob, chosen[0].special, chosen[1].logprob) == (None, True, -1.0)
