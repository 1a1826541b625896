"""Log probabilities of token ids as those of texts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from premoe_runtime.engines.base import Logprobs
from premoe_runtime.engines.hf.token_bytes import TokenBytes
from premoe_worker.domain import Delta, PlaceLogprobs, TokenLogprob

_PLACES = 256
"""Of the prompt in one message, which has a bound; between two of them others have their turn."""


def place_logprobs(tokens: TokenBytes, found: Logprobs, *, first: bool = False) -> PlaceLogprobs:
    """``first``: nothing with text stands before it."""

    def named(token_id: int, logprob: float) -> TokenLogprob:
        return TokenLogprob(token_id, tokens.of(token_id, first=first), tokens.is_special(token_id), logprob)

    return PlaceLogprobs(named(found.token_id, found.logprob), tuple(named(*pair) for pair in found.top))


async def of_prompt(tokens: TokenBytes, token_ids: Sequence[int], found: Sequence[Logprobs]) -> AsyncIterator[Delta]:
    """``found``: of the prompt's tokens from the second on; its first has nothing that could foretell it."""
    first_text = next((index for index, token in enumerate(token_ids) if not tokens.is_special(token)), 0)
    opening = token_ids[0]
    begin = TokenLogprob(opening, tokens.of(opening, first=first_text == 0), tokens.is_special(opening), None)
    places = [PlaceLogprobs(begin)]
    for index, each in enumerate(found, 1):
        if len(places) == _PLACES:
            yield Delta("", (), prompt_logprobs=tuple(places))
            places = []
            await asyncio.sleep(0)
        places.append(place_logprobs(tokens, each, first=index == first_text))
    yield Delta("", (), prompt_logprobs=tuple(places))
