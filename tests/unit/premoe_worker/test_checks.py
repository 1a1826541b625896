"""Checks of grammars: only who brings a new one waits, and not for ever."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import Iterator

import pytest
from premoe_worker.checks import Checks
from premoe_worker.domain import AnswerFormat, Ask, Tool, ToolChoice
from premoe_worker.tools.formats import ToolForm, ToolUse

from premoe_runtime.engines import grammar_check
from premoe_runtime.formats.errors import Exhausted, InvalidInput

USE = ToolUse(True, True, ToolForm("<tool_call>", "", "\n", "", "</tool_call>"))
NUMBERS = itertools.count()


def new() -> Ask:
    """A request with a schema that nobody has asked for before."""
    return Ask("hi", format=AnswerFormat(json.dumps({"const": f"checks {next(NUMBERS)}"})))


class Compiler:
    """Says of no grammar that it is wrong, once it may."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.go = threading.Event()

    def __call__(self, grammar: str) -> str:
        self.asked.append(grammar)
        assert self.go.wait(60)
        return "wrong" if "wrong" in grammar else ""


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Compiler]:
    compiler = Compiler()
    monkeypatch.setattr(grammar_check, "_problem", compiler)
    yield compiler
    compiler.go.set()


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_who_needs_no_check_waits_behind_none(compiler: Compiler) -> None:
    checks, seen = Checks(waiting=99), new()
    compiler.go.set()
    grammar = await checks.grammar(seen, USE)
    compiler.go.clear()
    busy = [asyncio.create_task(checks.grammar(new(), USE)) for _ in range(10)]
    await settled()
    assert await checks.grammar(Ask("hi"), USE) == ""
    assert await checks.grammar(Ask("hi", tools=(Tool("f"),)), USE) == ""
    assert await checks.grammar(seen, USE) == grammar
    with pytest.raises(InvalidInput, match="no tools"):
        await checks.grammar(Ask("hi", tool_choice=ToolChoice(required=True)), USE)
    with pytest.raises(Exhausted, match="8 new schemas are waiting to be checked") as caught:
        await checks.grammar(new(), USE)
    assert caught.value.reason == "QUEUE_FULL"
    compiler.go.set()
    assert all(await asyncio.gather(*busy))
    checks.close()


async def test_one_schema_is_checked_once_for_all_who_ask(compiler: Compiler) -> None:
    checks, asked = Checks(waiting=30), new()
    wrong = Ask("hi", format=AnswerFormat('{"const": "wrong"}'))
    answers = [asyncio.create_task(checks.grammar(asked, USE)) for _ in range(20)]
    refused = [asyncio.create_task(checks.grammar(wrong, USE)) for _ in range(10)]
    await settled()
    with pytest.raises(Exhausted, match="30 requests wait for their schemas"):
        await checks.grammar(asked, USE)
    answers[0].cancel()  # the others get their answer all the same
    await settled()
    compiler.go.set()
    assert len({*await asyncio.gather(*answers[1:])}) == 1
    for result in await asyncio.gather(*refused, return_exceptions=True):
        assert isinstance(result, InvalidInput)
        assert result.reason == "RESPONSE_FORMAT_INVALID"
    assert len(compiler.asked) <= 3, "the one that was left may be asked for again"
    checks.close()
