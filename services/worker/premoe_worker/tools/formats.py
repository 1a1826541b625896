"""The forms that calls of tools take in a model's text: found by what its chat template writes, never by its name.

To add one, add a line to ``FORMS``: a pattern of the call that ``SAMPLE`` makes, and how the form goes on and ends.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from premoe_runtime.formats.errors import InvalidInput
from premoe_worker.domain import Tool, Turn

_OFFERED, _CALLED, _SAID = "premoe_offered", "premoe_called", "premoe_said"
_TOOLS = [{"type": "function", "function": {"name": _OFFERED, "description": "", "parameters": {"type": "object"}}}]
_USER: dict[str, Any] = {"role": "user", "content": "hi"}
_CALL = {"id": "premoe001", "type": "function", "function": {"name": _CALLED, "arguments": {"a": 1}}}
SAMPLE: list[dict[str, Any]] = [
    _USER,
    {"role": "assistant", "content": "", "tool_calls": [_CALL]},
    {"role": "tool", "content": _SAID, "tool_call_id": "premoe001"},
]
_OBJECT = rf'\{{"name": ?"{_CALLED}", ?"arguments": ?\{{"a": ?1\}}(, ?"id": ?"premoe001")?\}}'


class Tokenizer(Protocol):
    """What is needed of a transformers tokenizer."""

    chat_template: Any

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any: ...

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]: ...


@dataclass(frozen=True, slots=True)
class ToolForm:
    """Calls are JSON objects of name and arguments: ``mark`` ``before`` object (``between`` object)* ``after``.

    ``close`` ends what a mark began; empty: the end of the answer does.
    """

    mark: str
    before: str
    between: str
    after: str
    close: str


def _hermes(found: re.Match[str]) -> ToolForm:
    before, after = found["before"], found["after"] + "</tool_call>"
    return ToolForm("<tool_call>", before, f"{after}\n<tool_call>{before}", after, "</tool_call>")


def _mistral(found: re.Match[str]) -> ToolForm:
    return ToolForm("[TOOL_CALLS]", found["before"] + "[", ", ", "]", "")


FORMS = (
    # Hermes, Qwen 2.5 and 3.
    (re.compile(rf"<tool_call>(?P<before>\s*){_OBJECT}(?P<after>\s*)</tool_call>"), _hermes),
    # Mistral and Mixtral, from their third tokenizer on.
    (re.compile(rf"\[TOOL_CALLS\](?P<before>\s*)\[{_OBJECT}\]"), _mistral),
)


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What a model's chat template does with tools. ``special``: id by text of tokens that have no text in an answer.

    ``form``: of its calls; None where it is none that we know.
    """

    shows_tools: bool = False
    shows_calls: bool = False
    form: ToolForm | None = None
    special: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> ToolUse:
        """By rendering two conversations."""
        offered = _rendered(tokenizer, [_USER])
        talked = _rendered(tokenizer, SAMPLE)
        forms = (form(found) for pattern, form in FORMS if (found := pattern.search(talked)))
        added = tokenizer.added_tokens_decoder.items()
        return cls(
            shows_tools=_OFFERED in offered,
            shows_calls=_CALLED in talked and _SAID in talked,
            form=next(forms, None),
            special={token.content: number for number, token in added if token.special},
        )

    def check(self, turns: Sequence[Turn], tools: Sequence[Tool]) -> None:
        """Raise InvalidInput for what the template would leave out."""
        if tools and not self.shows_tools:
            raise InvalidInput("tools: this model's chat template knows no tools", reason="TOOLS_UNSUPPORTED")
        if not self.shows_calls and any(turn.tool_calls or turn.role == "tool" for turn in turns):
            raise InvalidInput(
                "messages: this model's chat template cannot show calls of tools nor their answers",
                reason="TOOL_CALLS_UNSUPPORTED",
            )


def _rendered(tokenizer: Tokenizer, conversation: list[dict[str, Any]]) -> str:
    """Empty where the template refuses it, or is none."""
    if not tokenizer.chat_template:
        return ""
    try:
        return str(
            tokenizer.apply_chat_template(conversation, tools=_TOOLS, tokenize=False, add_generation_prompt=True)
        )
    except Exception:
        # Templates are programs that raise whatever they like; what they say of a real conversation is told then.
        return ""
