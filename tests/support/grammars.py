"""Grammars as the worker makes them, checked at once."""

from __future__ import annotations

import asyncio

from premoe_worker.domain import Ask
from premoe_worker.grammars import answer_grammar
from premoe_worker.tools.formats import ToolUse

from premoe_runtime.engines.grammar_check import check_grammar


def grammar_of(ask: Ask, use: ToolUse = ToolUse()) -> str:
    """The grammar of what is asked; empty: any text. Raises InvalidInput."""

    async def check(grammar: str) -> None:
        check_grammar(grammar)

    return asyncio.run(answer_grammar(ask, use, check))
