"""Arguments of a model's own chat template, such as Qwen3's enable_thinking and GPT-OSS' reasoning_effort."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Protocol

from jinja2 import TemplateError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from premoe_servicekit.template_arguments import fault_of

from premoe_runtime.formats.errors import InvalidInput

Json = dict[str, Any]
_SETTLED = frozenset(
    {
        "messages",
        "tools",
        "documents",
        "add_generation_prompt",
        "continue_final_message",
        "raise_exception",
        "strftime_now",
    }
)
"""What templates read that the request says elsewhere, or transformers does."""


class _Generation(Extension):
    """The block that transformers has templates mark answers with, as if it were not there."""

    tags = {"generation"}  # noqa: RUF012  # jinja's own form

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Tokenizer(Protocol):
    """What is needed of a transformers tokenizer."""

    chat_template: Any
    SPECIAL_TOKENS_ATTRIBUTES: list[str]

    @property
    def special_tokens_map(self) -> Any: ...


_AS_TRANSFORMERS = ImmutableSandboxedEnvironment(extensions=[_Generation, loopcontrols])
"""What it reads templates with."""


@dataclass(frozen=True, slots=True)
class TemplateArguments:
    """``known``: names that the template reads and that a request may give."""

    known: frozenset[str] = frozenset()

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> TemplateArguments:
        if not isinstance(tokenizer.chat_template, str):
            return cls()
        try:
            read = meta.find_undeclared_variables(_AS_TRANSFORMERS.parse(tokenizer.chat_template))
        except TemplateError:
            return cls()
        special = {*tokenizer.SPECIAL_TOKENS_ATTRIBUTES, *tokenizer.special_tokens_map}
        return cls(frozenset(read) - _SETTLED - special)

    def read(self, text: str) -> Json:
        """Arguments from a JSON object; none from an empty text. Raises InvalidInput."""
        if not text:
            return {}
        given = _object(text)
        unknown = sorted(given.keys() - self.known)
        if unknown:
            reads = f"reads only {', '.join(sorted(self.known))}" if self.known else "reads none"
            raise _refused(f"the model's chat template {reads}, not {unknown[0]}")
        return given


def _object(text: str) -> Json:
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        given = None
    if fault := fault_of(given):
        raise _refused(fault)
    assert isinstance(given, dict), "as was checked"
    return given


def _refused(why: str) -> InvalidInput:
    return InvalidInput(f"chat_template_kwargs: {why}", reason="TEMPLATE_ARGUMENT")
