"""Calibration text: one JSON object a line, ``{"prompt": …, "answer": …?}`` or ``{"messages": […]}``.

The files are written by hand and by scripts, so every fault is reported with file and line number.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import blake3

from premoe_runtime.formats.errors import InvalidInput, NotFound

Answers = Literal["given", "none"]
_ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """One calibration prompt: the conversation up to the answer, and the answer where there is one."""

    messages: tuple[Message, ...]
    answer: str | None
    line: int = 0


def read_calibration(
    path: Path, *, answers: Answers = "given", limit: int | None = None, skip: int = 0
) -> list[Example]:
    """Read examples ``skip`` to ``skip + limit`` of a JSONL file; blank lines are passed over.

    The whole file is checked, whatever the limit. Raises NotFound for a missing file and InvalidInput, with the
    line number, for broken JSON, a missing or empty prompt, a wrong type, or (``answers="given"``) no answer.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound(f"{path}: no such calibration file", reason="CALIBRATION_NOT_FOUND") from error
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be read: {error.strerror}", reason="CALIBRATION_INVALID") from error
    examples = list(_examples(data, str(path), answers))
    if not examples:
        raise InvalidInput(f"{path}: holds no examples", reason="CALIBRATION_EMPTY")
    chosen = examples[skip:][: len(examples) if limit is None else limit]
    if not chosen:
        raise InvalidInput(
            f"{path}: has {len(examples)} examples, so skipping {skip} leaves none",
            reason="CALIBRATION_EMPTY",
        )
    return chosen


def calibration_digest(examples: Sequence[Example]) -> str:
    """blake3 over messages and answers, free of file layout and key order."""
    state = blake3.blake3()
    for example in examples:
        turns = [[message.role, message.content] for message in example.messages]
        state.update(json.dumps([turns, example.answer], ensure_ascii=True).encode())
    return state.hexdigest()


def _examples(data: bytes, where: str, answers: Answers) -> Iterator[Example]:
    for number, raw in enumerate(data.split(b"\n"), start=1):
        if not raw.strip():
            continue
        place = f"{where}:{number}"
        try:
            value = json.loads(raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise _invalid(place, f"is not UTF-8 at byte {error.start + 1}") from error
        except RecursionError as error:
            raise _invalid(place, "broken JSON: nested too deeply") from error
        except ValueError as error:
            detail = error.msg if isinstance(error, json.JSONDecodeError) else "too large a number"
            raise _invalid(place, f"broken JSON: {detail}") from error
        if not isinstance(value, dict):
            raise _invalid(place, 'is not a JSON object such as {"prompt": "…", "answer": "…"}')
        yield _example(value, place, number, answers)


def _example(value: dict[str, object], place: str, number: int, answers: Answers) -> Example:
    if "messages" in value and "prompt" in value:
        raise _invalid(place, 'has both "prompt" and "messages"; give one')
    if "messages" in value:
        messages, answer = _conversation(value["messages"], place)
    elif "prompt" in value:
        messages = (Message("user", _text(value["prompt"], "prompt", place)),)
        answer = None if value.get("answer") is None else _text(value["answer"], "answer", place)
    else:
        raise _invalid(place, 'has no "prompt" and no "messages"')
    if answers == "given" and answer is None:
        raise _invalid(place, "has no answer; give one, or profile prompts only with --answers none")
    return Example(messages, answer, number)


def _conversation(value: object, place: str) -> tuple[tuple[Message, ...], str | None]:
    if not isinstance(value, list) or not value:
        raise _invalid(place, '"messages" is not a list with at least one message')
    turns = [_message(entry, index, place) for index, entry in enumerate(value)]
    answer = turns.pop().content if turns[-1].role == "assistant" else None
    if not turns or turns[-1].role != "user":
        raise _invalid(place, '"messages" has no user turn before the answer')
    return tuple(turns), answer


def _message(entry: object, index: int, place: str) -> Message:
    name = f"messages[{index}]"
    if not isinstance(entry, dict):
        raise _invalid(place, f'"{name}" is not an object with "role" and "content"')
    role = _text(entry.get("role"), f"{name}.role", place)
    if role not in _ROLES:
        raise _invalid(place, f'"{name}.role" is {role!r}, expected one of {", ".join(_ROLES)}')
    return Message(role, _text(entry.get("content"), f"{name}.content", place))


def _text(value: object, name: str, place: str) -> str:
    if not isinstance(value, str):
        kind = "missing" if value is None else f"a {type(value).__name__}, expected text"
        raise _invalid(place, f'"{name}" is {kind}')
    if not value.strip():
        raise _invalid(place, f'"{name}" is empty')
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise _invalid(place, f'"{name}" holds half a surrogate pair, which is no text')
    return value


def _invalid(place: str, what: str) -> InvalidInput:
    return InvalidInput(f"{place}: {what}", reason="CALIBRATION_INVALID")
