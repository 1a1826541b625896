"""Prompts as token ids, with the place of the last user turn: what profiles, probes and generation must agree on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.offline.prompt_room import PromptRoom

MARK = "\u2402premoe\u2403"
"""Stands in for a turn's content; holds nothing that a template would strip."""


class Turn(Protocol):
    """One message of a conversation."""

    @property
    def role(self) -> str: ...

    @property
    def content(self) -> str: ...


T = TypeVar("T", bound=Turn)
Fields = dict[str, Any]


class ChatTokenizer(Protocol):
    """What is needed of a transformers tokenizer (a fast one: spans need character offsets)."""

    chat_template: Any

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any: ...

    def __call__(self, text: str, **options: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class Span:
    """Half-open range of token positions."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered conversation, ready for the model to answer.

    ``span`` holds the last user turn's own tokens: no template, system or tool tokens. Signatures are taken there.
    """

    token_ids: tuple[int, ...]
    span: Span


def fields_of(message: Turn) -> Fields:
    """What a template reads of a message."""
    return {"role": message.role, "content": message.content}


def encode_prompt(
    tokenizer: ChatTokenizer,
    messages: Sequence[T],
    room: PromptRoom | None = None,
    *,
    fields: Callable[[T], Fields] = fields_of,
    options: Fields | None = None,
) -> Prompt:
    """Render ``messages`` by the chat template up to the answer; without a template, join them by newlines.

    ``fields`` says what a template reads of a message, where that is more than role and content; ``options`` what it
    reads beside messages: tools in its own form, and arguments of its own.
    Raises InvalidInput when there is no user turn with text, the template refuses the conversation, or it is longer
    than ``room`` has.
    """
    if room is not None:
        room.check_turns(len(messages))
    last = max((index for index, message in enumerate(messages) if message.role == "user"), default=-1)
    if last < 0 or not messages[last].content.strip():
        raise InvalidInput("the conversation has no user turn with text", reason="PROMPT_EMPTY")
    turns = [fields(message) for message in messages]
    options = options or {}
    text, special = _render(tokenizer, turns, options)
    if room is not None:
        room.check(text)
    # Whoever asks compares the length with the model's; transformers would warn as well.
    encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
    token_ids = tuple(int(token) for token in encoded["input_ids"])
    start, stop = _place(tokenizer, turns, options, last, text)
    inside = [
        index
        for index, (begin, end) in enumerate(encoded["offset_mapping"])
        if end > begin and begin < stop and end > start
    ]
    if not inside:
        raise InvalidInput("the last user turn has no tokens of its own", reason="PROMPT_EMPTY")
    return Prompt(token_ids, Span(inside[0], inside[-1] + 1))


def encode_text(tokenizer: ChatTokenizer, text: str) -> tuple[int, ...]:
    """Token ids of text that continues a prompt: nothing is added at its ends."""
    return tuple(int(token) for token in tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _render(tokenizer: ChatTokenizer, turns: Sequence[Fields], options: Fields) -> tuple[str, bool]:
    """The text, and whether the tokenizer must still add its special tokens (templates write their own)."""
    if not tokenizer.chat_template:
        return "\n".join(turn["content"] for turn in turns), True
    try:
        text = tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=True, **options)
        return str(text), False
    except Exception as error:
        # Templates are jinja programs that raise whatever they like, for example for a role they do not know.
        raise InvalidInput(f"the chat template refuses the conversation: {error}", reason="TEMPLATE_REFUSED") from error


def _place(
    tokenizer: ChatTokenizer, turns: Sequence[Fields], options: Fields, index: int, text: str
) -> tuple[int, int]:
    """Characters of ``turns[index]`` in the rendered ``text``.

    Found by rendering once more with a mark in its place: the same words may occur elsewhere, in other turns or in the
    template itself. Where a template changes its mind with the content: its last occurrence, else the whole text.
    """
    marked, _ = _render(tokenizer, [*turns[:index], {**turns[index], "content": MARK}, *turns[index + 1 :]], options)
    before, found, after = marked.partition(MARK)
    if found and text.startswith(before) and text.endswith(after) and len(before) + len(after) < len(text):
        return len(before), len(text) - len(after)
    content = turns[index]["content"]
    for wanted in (content, content.strip()):
        start = text.rfind(wanted)
        if start >= 0:
            return start, start + len(wanted)
    return 0, len(text)
