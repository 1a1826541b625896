"""Patterns and schemas of strangers: judged, refused or ended, and never at others' cost."""

from __future__ import annotations

import asyncio
import json

import pytest
from premoe_gateway.search.verifiers.judged import FitVerifier, Judges, PatternVerifier, SchemaVerifier

from premoe_runtime.formats.errors import InvalidInput

JUDGES = 2


def pattern(text: str) -> PatternVerifier:
    return PatternVerifier(Judges(JUDGES), text)


def schema(value: object) -> SchemaVerifier:
    return SchemaVerifier(Judges(JUDGES), json.dumps(value))


@pytest.mark.parametrize(
    ("verifier", "answer", "score"),
    [
        (pattern("^[0-9]+$"), "42", 1.0),
        (pattern("[0-9]"), "none", 0.0),
        (pattern("(a+)+$"), "a" * 50_000 + "b", 0.0),
        (schema({"type": "object", "required": ["a"]}), ' {"a": 1}\n', 1.0),
        (schema({"type": "object", "required": ["a"]}), '{"b": 1}', 0.0),
        (schema({"type": "object"}), "no JSON", 0.0),
        (schema({}), "[" * 100_000, 0.0),
        (schema({"$ref": "#"}), "1", 1.0),
    ],
)
async def test_answers_are_judged(verifier: FitVerifier, answer: str, score: float) -> None:
    await verifier.check()
    assert await verifier.score(answer) == score


@pytest.mark.parametrize(
    "verifier",
    [
        pattern("("),
        pattern("(?=a)a"),
        pattern("((a{1,100}){1,100}){1,100}"),
        schema({"type": 5}),
        schema({"$ref": "http://127.0.0.1:1/schema"}),
        schema({"$ref": "file:///etc/passwd"}),
    ],
)
async def test_what_cannot_be_used_is_refused_in_one_line(verifier: FitVerifier) -> None:
    with pytest.raises(InvalidInput, match=r"^premoe\.search\.verifier: ") as caught:
        await verifier.check()
    assert caught.value.reason == "VERIFIER_INVALID"
    assert "\n" not in str(caught.value)


async def test_judges_that_nobody_waits_for_are_ended_and_give_their_places_back() -> None:
    judges = Judges(1)
    verifier = SchemaVerifier(judges, "{}")
    for _ in range(3):
        running = asyncio.create_task(verifier.score("1"))
        await asyncio.sleep(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert await verifier.score("1") == 1.0
