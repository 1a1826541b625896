"""Which arguments a model's chat template reads, and what they do to a prompt."""

from __future__ import annotations

import json

import pytest
from premoe_worker.domain import Turn
from premoe_worker.template import TemplateArguments
from support.tool_templates import HERMES, THINKS, tool_tokenizer

from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.offline.prompts import encode_prompt, fields_of

EFFORT = "{%- if effort is not defined %}{%- set effort = 'medium' %}{%- endif %}{{- 'Effort: ' + effort }}" + HERMES
"""In the manner of GPT-OSS."""
MARKED = (
    "{% generation %}{% for message in messages %}{% if message.last %}{% break %}{% endif %}{{ message.content }}"
    "{% endfor %}{% endgeneration %}{{ own }}"
)
"""With a block and a statement that jinja itself does not know."""


@pytest.mark.parametrize(
    ("template", "known"),
    [(HERMES, set()), (THINKS, {"enable_thinking"}), (EFFORT, {"effort"}), (MARKED, {"own"}), ("{{ broken", set())],
)
def test_known_arguments_are_those_that_the_template_reads(template: str, known: set[str]) -> None:
    assert TemplateArguments.of(tool_tokenizer(template)).known == known
    assert TemplateArguments.of(tool_tokenizer(template)).read("") == {}


def test_a_template_that_writes_special_tokens_does_not_offer_them() -> None:
    assert TemplateArguments.of(tool_tokenizer("{{ bos_token }}{{ eos_token }}" + THINKS)).known == {"enable_thinking"}


def test_arguments_change_what_is_written_and_not_where_the_user_speaks() -> None:
    tokenizer = tool_tokenizer(THINKS)
    plain, thoughtless = (
        encode_prompt(tokenizer, [Turn("user", "1+1")], fields=fields_of, options=options)
        for options in ({}, TemplateArguments.of(tokenizer).read('{"enable_thinking": false}'))
    )
    assert tokenizer.decode(thoughtless.token_ids) == tokenizer.decode(plain.token_ids) + "(none)"
    assert plain.span == thoughtless.span


@pytest.mark.parametrize(
    ("template", "given", "says"),
    [
        (THINKS, {"enable_thinkin": False}, "reads only enable_thinking, not enable_thinkin"),
        (HERMES, {"enable_thinking": False}, "reads none, not enable_thinking"),
        (THINKS, {"messages": "x"}, "reads only enable_thinking, not messages"),
        (THINKS, {"tools": "x"}, "reads only enable_thinking, not tools"),
        (THINKS, {"add_generation_prompt": False}, "reads only enable_thinking, not add_generation_prompt"),
        (THINKS, {"enable_thinking": [1]}, "enable_thinking must be true, false"),
        (THINKS, [], "must be an object"),
    ],
)
def test_others_are_refused(template: str, given: object, says: str) -> None:
    with pytest.raises(InvalidInput, match=says) as caught:
        TemplateArguments.of(tool_tokenizer(template)).read(json.dumps(given))
    assert str(caught.value).startswith("chat_template_kwargs: ")


@pytest.mark.parametrize("text", ["{", "1", "[" * 100_000])
def test_what_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="must be an object"):
        TemplateArguments(frozenset({"a"})).read(text)
