"""Calls of tools: forms found by templates, text split into calls, and grammars that force them."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from premoe_worker.domain import AnswerFormat, Ask, Tool, ToolCall, ToolChoice, Turn
from premoe_worker.tools.formats import ToolForm, ToolUse
from premoe_worker.tools.reader import ToolReader
from premoe_worker.tools.rendering import fields_of, listed
from support.grammars import grammar_of
from support.tiny import VOCAB_SIZE, tiny_tokenizer
from support.tool_templates import HERMES, MISTRAL, TAGGED, tool_tokenizer

from premoe_runtime.engines.grammar import Grammars
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.offline.prompts import encode_prompt

MARK = "[TOOL_CALLS]"
ADD = Tool(
    "add",
    "adds",
    '{"type": "object", "properties": {"a": {"enum": [1, 22]}}, "required": ["a"], "additionalProperties": false}',
)
NOW = Tool("now")
CALL = ToolCall("abcdefghi", "add", '{"a": 1}')
TALK = (Turn("user", "1 + 0?"), Turn("assistant", "", (CALL,)), Turn("tool", "1", tool_call_id="abcdefghi"))
HERMES_FORM = ToolForm(
    "<tool_call>", "\n", "\n</tool_call>\n<tool_call>\n", "\n</tool_call>", "</tool_call>"
)  # fmt: skip
MISTRAL_FORM = ToolForm(MARK, " [", ", ", "]", "")


def test_forms_are_found_by_what_a_template_writes() -> None:
    hermes = ToolUse.of(tool_tokenizer(HERMES))
    assert (hermes.shows_tools, hermes.shows_calls, hermes.form) == (True, True, HERMES_FORM)
    mistral = ToolUse.of(tool_tokenizer(MISTRAL, MARK))
    assert (mistral.shows_tools, mistral.shows_calls, mistral.form) == (True, True, MISTRAL_FORM)
    assert mistral.special[MARK] == VOCAB_SIZE - 3
    tagged = ToolUse.of(tool_tokenizer(TAGGED))
    assert (tagged.shows_tools, tagged.shows_calls, tagged.form) == (True, True, None)


def test_what_a_template_leaves_out_is_refused_by_name() -> None:
    plain = ToolUse.of(tiny_tokenizer())
    assert (plain.shows_tools, plain.shows_calls, plain.form) == (False, False, None)
    with pytest.raises(InvalidInput, match="knows no tools") as caught:
        plain.check(TALK[:1], [ADD])
    assert caught.value.reason == "TOOLS_UNSUPPORTED"
    with pytest.raises(InvalidInput, match="cannot show calls") as caught:
        plain.check(TALK, [])
    assert caught.value.reason == "TOOL_CALLS_UNSUPPORTED"
    ToolUse.of(tool_tokenizer(HERMES)).check(TALK, [ADD])


def test_histories_with_calls_are_rendered_and_the_user_s_turn_is_found() -> None:
    tokenizer = tool_tokenizer(HERMES)
    prompt = encode_prompt(tokenizer, TALK, fields=fields_of, options={"tools": [listed(ADD)]})
    text = tokenizer.decode(prompt.token_ids)
    assert '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|end|>' in text
    assert "<tool_response>\n1\n</tool_response>" in text
    assert '"name": "add", "description": "adds"' in text
    assert tokenizer.decode(prompt.token_ids[prompt.span.start : prompt.span.stop]) == "1 + 0?"


def test_wrong_json_of_a_caller_is_refused() -> None:
    with pytest.raises(InvalidInput, match="parameters of add must be a JSON object"):
        listed(Tool("add", parameters="[1]"))
    with pytest.raises(InvalidInput, match="arguments of add must be a JSON object"):
        fields_of(Turn("assistant", "", (ToolCall("1", "add", "{"),)))


def read(form: ToolForm, text: str, cuts: list[int]) -> list[str | tuple[str, Any]]:
    """What a reader makes of a text in pieces; neighbouring texts joined."""
    reader, found = ToolReader(form, {}), list[Any]()
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    for start, stop in pairwise(places):
        found += reader.push(text[start:stop])
    joined = list[str | tuple[str, Any]]()
    for piece in [*found, *reader.close()]:
        if isinstance(piece, ToolCall):
            joined.append((piece.name, json.loads(piece.arguments)))
        elif joined and isinstance(joined[-1], str):
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


ONE, TWO = '{"name": "add", "arguments": {"a": 1}}', '{"arguments": {"b": "</x>"}, "name": "now"}'
TEXTS: dict[str, tuple[ToolForm, str, list[Any]]] = {
    "no call": (HERMES_FORM, "a < b <tool \n", ["a < b <tool \n"]),
    "one": (HERMES_FORM, f"\n<tool_call>\n{ONE}\n</tool_call>", [("add", {"a": 1})]),
    "text before": (HERMES_FORM, f"Let me.\n<tool_call>{ONE}</tool_call>\n", ["Let me.", ("add", {"a": 1})]),
    "two": (
        HERMES_FORM,
        f"<tool_call>{ONE}</tool_call>\n<tool_call>{TWO}</tool_call>",
        [("add", {"a": 1}), ("now", {"b": "</x>"})],
    ),
    "last mark missing": (HERMES_FORM, f"<tool_call>\n{ONE}", [("add", {"a": 1})]),
    "cut": (HERMES_FORM, '<tool_call>\n{"name": "a', ['<tool_call>\n{"name": "a']),
    "no object": (HERMES_FORM, "<tool_call>[1]</tool_call>!", ["<tool_call>[1]</tool_call>!"]),
    "no name": (HERMES_FORM, '<tool_call>{"a": 1}</tool_call>', ['<tool_call>{"a": 1}</tool_call>']),
    "no arguments": (HERMES_FORM, '<tool_call>{"name": "now"}</tool_call>', [("now", {})]),
    "half a pair": (
        HERMES_FORM,
        '<tool_call>{"name": "f\\udc00", "arguments": {"a": "\\ud83d", "b": "\\ud83d\\ude00"}}</tool_call>',
        [("f\ufffd", {"a": "\ufffd", "b": "\U0001f600"})],
    ),
    "list": (MISTRAL_FORM, f"{MARK} [{ONE}, {TWO}]", [("add", {"a": 1}), ("now", {"b": "</x>"})]),
    "text before a list": (MISTRAL_FORM, f"ok {MARK}[{ONE}]", ["ok", ("add", {"a": 1})]),
    "no list": (MISTRAL_FORM, f"{MARK} maybe", [f"{MARK} maybe"]),
}


for number in ("NaN", "-Infinity", "1e999"):
    no_json = f'<tool_call>{{"name": "f", "arguments": {{"a": {number}}}}}</tool_call>'
    TEXTS[number] = HERMES_FORM, no_json, [no_json]


@pytest.mark.parametrize("case", TEXTS.values(), ids=TEXTS.keys())
@given(cuts=st.lists(st.integers(0, 200), max_size=6))
def test_text_is_split_wherever_it_is_cut(case: tuple[ToolForm, str, list[Any]], cuts: list[int]) -> None:
    form, text, expected = case
    assert read(form, text, cuts) == expected


def test_a_mark_without_text_is_seen_by_its_id() -> None:
    reader = ToolReader(MISTRAL_FORM, {MARK: 7})
    assert reader.push("ok", (1,)) == ["ok"]
    assert reader.push("", (7,)) == []
    assert reader.push(f" [{ONE}]", (2, 3)) == []
    (call,) = reader.close()
    assert isinstance(call, ToolCall)
    assert (call.name, len(call.id), call.id.isalnum()) == ("add", 9, True)


TOKENIZERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "hermes": (HERMES, ()),
    "mistral": (MISTRAL, (MARK,)),
    "hermes with tokens": (HERMES, ("<tool_call>", "</tool_call>")),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize(
    ("choice", "names", "most"),
    [
        (ToolChoice(required=True), {"add", "now"}, 16),
        (ToolChoice(required=True, single=True), {"add", "now"}, 1),
        (ToolChoice(required=True, name="add"), {"add"}, 1),
    ],
)
def test_a_random_model_that_must_call_makes_calls_and_nothing_else(
    kind: str, choice: ToolChoice, names: set[str], most: int
) -> None:
    for seed in range(4):
        pieces = answer(kind, Ask("", tools=(ADD, NOW), tool_choice=choice), seed)
        assert pieces
        assert len(pieces) <= most
        for call in pieces:
            assert isinstance(call, ToolCall)
            assert call.name in names
            assert json.loads(call.arguments) in ({"a": 1}, {"a": 22}) if call.name == "add" else call.arguments == "{}"


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_with_a_format_the_answer_is_that_or_calls(kind: str) -> None:
    asked = Ask("", format=AnswerFormat('{"const": 5}', strict=True), tools=(ADD, NOW))
    found = [answer(kind, asked, seed) for seed in range(12)]
    assert all(pieces == ["5"] or all(isinstance(piece, ToolCall) for piece in pieces) for pieces in found)
    assert {pieces == ["5"] for pieces in found} == {True, False}


def answer(kind: str, ask: Ask, seed: int) -> list[Any]:
    """What a model that knows nothing but the grammar answers."""
    template, special = TOKENIZERS[kind]
    tokenizer = tool_tokenizer(template, *special)
    use, draw = ToolUse.of(tokenizer), random.Random(seed)
    assert use.form is not None
    end = tokenizer.eos_token_id
    matcher = Grammars(tokenizer, VOCAB_SIZE + 3, {end}).compile(grammar_of(closed(ask), use))
    reader, pieces, ended = ToolReader(use.form, use.special), list[Any](), False
    while not ended:
        allowed = matcher.allowed().nonzero()[0].tolist()
        token = draw.choice(allowed)
        ended = matcher.accept(token) or token == end
        pieces += reader.push(tokenizer.decode([token], skip_special_tokens=True), (token,))
    return [*pieces, *reader.close()]


def closed(ask: Ask) -> Ask:
    """Random bytes would fill free text for ever: a tool without parameters takes none here."""
    none = '{"type": "object", "additionalProperties": false}'
    tools = tuple(Tool(tool.name, tool.description, tool.parameters or none) for tool in ask.tools)
    return Ask(ask.prompt, format=ask.format, tools=tools, tool_choice=ask.tool_choice)


def test_what_cannot_be_forced_is_refused() -> None:
    known, unknown = ToolUse.of(tool_tokenizer(HERMES)), ToolUse.of(tool_tokenizer(TAGGED))
    with pytest.raises(InvalidInput, match="calls cannot be forced") as caught:
        grammar_of(Ask("", tools=(ADD,), tool_choice=ToolChoice(required=True)), unknown)
    assert caught.value.reason == "TOOL_CHOICE_UNSUPPORTED"
    with pytest.raises(InvalidInput, match="Invalid type: strng") as caught:
        grammar_of(Ask("", tools=(Tool("f", "", '{"type": "strng"}', strict=True),)), known)
    assert caught.value.reason == "TOOLS_INVALID"
    with pytest.raises(InvalidInput, match="there are no tools"):
        grammar_of(Ask("", tool_choice=ToolChoice(required=True)), known)
    assert grammar_of(Ask("", tools=(ADD,)), known) == ""
    assert "text_begin" in grammar_of(Ask("", tools=(Tool("f", strict=True),)), known)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_strict_tool_holds_from_the_mark_on(kind: str) -> None:
    template, special = TOKENIZERS[kind]
    tokenizer = tool_tokenizer(template, *special)
    use, end = ToolUse.of(tokenizer), tokenizer.eos_token_id
    assert use.form is not None
    strict = Tool(ADD.name, ADD.description, ADD.parameters, strict=True)
    matcher = Grammars(tokenizer, VOCAB_SIZE + 3, {end}).compile(grammar_of(Ask("", tools=(strict,)), use))

    def write(text: str) -> set[str]:
        """What may follow ``text``."""
        for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
            assert not matcher.accept(token)
        return set(tokenizer.convert_ids_to_tokens(matcher.allowed().nonzero()[0].tolist()))

    assert {"a", "<", "[", tokenizer.eos_token} <= write("Hello. ")
    opening = use.form.mark + use.form.before
    assert write(opening) == {"{"}
    assert write('{"name": "add", "arguments": {"a":') >= {"1", "2"}
    assert not {"3", "}", '"', tokenizer.eos_token} & write("2")
    write("2}}")
    assert tokenizer.eos_token in write(use.form.after)
    if use.form.close:
        assert {"a", "<", tokenizer.eos_token} <= write("\n")
        assert {"a", "<", tokenizer.eos_token} <= write("\nBye. ")
        assert write(opening) == {"{"}
