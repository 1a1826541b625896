"""What an answer was asked to look like, as a grammar for the engine."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping

from premoe_runtime.formats.errors import InvalidInput
from premoe_worker.domain import AnswerFormat, Ask, Tool
from premoe_worker.tools.formats import ToolForm, ToolUse
from premoe_worker.tools.rendering import Json, parameters_of

Check = Callable[[str], Awaitable[None]]
"""Raises InvalidInput for a grammar that cannot be used."""
MAX_SCHEMA_BYTES = 1 << 16
_MOST_CALLS = 16
"""In one answer, where calls are required: weak models go on for ever."""
_WHITESPACE = r"[\x20\x0A\x0D\x09]{0,20}"
"""Between two tokens of JSON. Without a bound a model that likes spaces never comes to an end."""


async def answer_grammar(ask: Ask, use: ToolUse, check: Check) -> str:
    """Of `response_format` and tools together; empty: any text. Raises InvalidInput, and what ``check`` raises."""
    answer = None if ask.format is None else await _format_schema(ask.format, check)
    choice, form = ask.tool_choice, use.form
    forced = choice.required or bool(choice.name)
    if forced and not ask.tools:
        raise InvalidInput("tool_choice: there are no tools to call", reason="TOOLS_INVALID")
    if forced and form is None:
        raise InvalidInput(
            "tool_choice: calls cannot be forced, for this model's chat template shows none in a form that is known; "
            "leave the choice to the model (auto)",
            reason="TOOL_CHOICE_UNSUPPORTED",
        )
    if not ask.tools or form is None or not (forced or answer or any(tool.strict for tool in ask.tools)):
        return "" if answer is None else _json(answer)
    tools = [tool for tool in ask.tools if choice.name in ("", tool.name)]
    if not tools:
        raise InvalidInput(f"tool_choice: {choice.name} is none of the tools", reason="TOOLS_INVALID")
    calls = _Calls(form, tools, single=choice.single or bool(choice.name))
    start = calls.only() if forced else calls.or_answer(answer) if answer else calls.within_text()
    try:
        await check(_lark(start + calls.rules({})))
    except InvalidInput as error:
        message = f"tools: the parameters cannot be used: {error}"
        raise InvalidInput(message, reason="TOOLS_INVALID") from error
    return _lark(start + calls.rules(use.special))


async def _format_schema(wanted: AnswerFormat, check: Check) -> Json:
    try:
        schema = with_options(_read(wanted.schema), strict=wanted.strict)
        await check(_json(schema))
    except InvalidInput as error:
        message = f"response_format: the schema cannot be used: {error}"
        raise InvalidInput(message, reason="RESPONSE_FORMAT_INVALID") from error
    return schema


def _read(schema: str) -> Json:
    if len(schema.encode()) > MAX_SCHEMA_BYTES:
        raise InvalidInput(f"it is longer than {MAX_SCHEMA_BYTES} bytes")
    try:
        document = json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"it is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidInput("it must be an object")
    return document


def with_options(schema: Json, *, strict: bool) -> Json:
    """A client's schema, with what the compiler is to make of it.

    The client's own options are overwritten: they would loosen what is promised.
    """
    options = {"whitespace_pattern": _WHITESPACE, "lenient": not strict, "coerce_one_of": not strict}
    return {**schema, "x-guidance": options}


class _Calls:
    """Rules, in Lark's notation, of calls in a model's form."""

    def __init__(self, form: ToolForm, tools: list[Tool], *, single: bool) -> None:
        if sum(len(tool.parameters.encode()) for tool in tools) > MAX_SCHEMA_BYTES:
            message = f"tools: their parameters are longer than {MAX_SCHEMA_BYTES} bytes together"
            raise InvalidInput(message, reason="TOOLS_INVALID")
        self._form, self._tools, self._single = form, tools, single

    def only(self) -> str:
        return "start: begin calls\n"

    def or_answer(self, answer: Json) -> str:
        return f"start: begin calls | answer\nanswer: %json {json.dumps(answer)}\n"

    def within_text(self) -> str:
        """Text that may begin calls: from there on it follows their rules."""
        # Where a mark closes each call, the next one begins with a mark again: what stands between is the model's.
        after = "one" if self._form.close else "calls"
        return f"start: (text_begin {after}){'?' if self._single else '*'} text\ntext: TEXT\nTEXT: /(.|\\n)*/\n"

    def rules(self, special: Mapping[str, int]) -> str:
        """``special``: id by text of marks that are tokens without text."""
        form = self._form
        mark = _text(form.mark, special)
        lazy = "" if form.mark in special else "[lazy]"
        again = "" if self._single else f" (between call){{0,{_MOST_CALLS - 1}}}"
        lines = [
            f"begin: {mark}",
            f"text_begin{lazy}: TEXT {mark}",
            f"calls: {_text(form.before, special)} call{again} {_text(form.after, special)}",
            f"one: {_text(form.before, special)} call {_text(form.after, special)}",
            "call: " + " | ".join(f"call_{number}" for number in range(len(self._tools))),
        ]
        if not self._single:
            lines.append(f"between: {_text(form.between, special)}")
        for number, tool in enumerate(self._tools):
            opening = json.dumps('{"name": ' + json.dumps(tool.name) + ', "arguments": ')
            schema = json.dumps(with_options(parameters_of(tool), strict=tool.strict))
            lines += [f'call_{number}: {opening} arguments_{number} "}}"', f"arguments_{number}: %json {schema}"]
        return "\n".join(lines) + "\n"


def _text(text: str, special: Mapping[str, int]) -> str:
    """A literal; marks in it that are special tokens stand by their id."""
    for mark, token in special.items():
        if mark in text:
            before, _, after = text.partition(mark)
            return f"{_text(before, special)} <[{token}]> {_text(after, special)}".strip()
    return json.dumps(text) if text else ""


def _json(schema: Json) -> str:
    return json.dumps({"grammars": [{"json_schema": schema}]})


def _lark(rules: str) -> str:
    return json.dumps({"grammars": [{"lark_grammar": rules}]})
