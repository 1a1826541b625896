"""Long JSON documents, written piece by piece so that other clients' streams go on meanwhile.

A thread would not do: the encoder holds the interpreter's lock for as long as a piece takes.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping

from starlette.responses import Response

TURN_CHARACTERS = 1 << 15
"""Written before others have their turn: well under a millisecond."""
PIECE_ITEMS = 128
"""Of a long list, encoded at a time: the log probabilities of so many tokens."""
_SHORT = 16
"""A list of at most so many items may have long ones; those of longer lists are small (choices against tokens)."""


async def text_of(value: object) -> str:
    """The value as JSON; others have their turn meanwhile. Raises ValueError: numbers that are not finite."""
    found, written = [], 0
    for piece in _pieces(value):
        found.append(piece)
        written += len(piece)
        if written >= TURN_CHARACTERS:
            written = 0
            await asyncio.sleep(0)
    return "".join(found)


async def answer_of(value: object, headers: Mapping[str, str]) -> Response:
    """What starlette's ``JSONResponse`` makes of a value, byte for byte."""
    return Response(await text_of(value), headers=headers, media_type="application/json")


def _pieces(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        yield "{"
        for number, (key, item) in enumerate(value.items()):
            yield f"{',' * (number > 0)}{_encoded(key)}:"
            yield from _pieces(item)
        yield "}"
    elif isinstance(value, list) and len(value) > _SHORT:
        yield "["
        for start in range(0, len(value), PIECE_ITEMS):
            yield f"{',' * (start > 0)}{_encoded(value[start : start + PIECE_ITEMS])[1:-1]}"
        yield "]"
    elif isinstance(value, list):
        yield "["
        for number, item in enumerate(value):
            yield "," * (number > 0)
            yield from _pieces(item)
        yield "]"
    else:
        yield _encoded(value)


def _encoded(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
