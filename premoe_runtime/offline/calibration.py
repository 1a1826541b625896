"""Calibration text: one JSON object a line, ``{"prompt": …, "answer": …?}`` or ``{"messages": […]}``.

The files are written by hand and by scripts, so every fault is reported with file and line number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import blake3

from premoe_runtime.formats.errors import InvalidInput, NotFound
from premoe_runtime.formats.pattern import GENERALIST_TASK
from premoe_runtime.storage import open_store

Answers = Literal["given", "own", "none"]
_ROLES = ("system", "user", "assistant", "tool")
_TASK = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


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
    """Read examples of a JSONL file; see ``parse_calibration``. Raises NotFound for a missing file."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound(f"{path}: no such calibration file", reason="CALIBRATION_NOT_FOUND") from error
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be read: {error.strerror}", reason="CALIBRATION_INVALID") from error
    return parse_calibration(data, str(path), answers=answers, limit=limit, skip=skip)


def load_calibration(source: str, *, answers: Answers = "given", limit: int | None = None) -> list[Example]:
    """Examples of a file, or of an object named by a URL (``s3://bucket/key``); see ``parse_calibration``.

    Raises NotFound (CALIBRATION_NOT_FOUND), and Unavailable when the object store does not answer.
    """
    if "://" not in source:
        return read_calibration(Path(source), answers=answers, limit=limit)
    folder, _, name = source.rpartition("/")
    try:
        data = open_store(folder).get(name)
    except NotFound as error:
        raise NotFound(f"{source}: no such calibration object", reason="CALIBRATION_NOT_FOUND") from error
    return parse_calibration(data, source, answers=answers, limit=limit)


def parse_calibration(
    data: bytes, where: str, *, answers: Answers = "given", limit: int | None = None, skip: int = 0
) -> list[Example]:
    """Examples ``skip`` to ``skip + limit`` of JSON lines; blank lines are passed over.

    All lines are checked, whatever the limit. Raises InvalidInput, with the line number, for broken JSON, a missing
    or empty prompt, a wrong type, or (``answers="given"``) no answer.
    """
    examples = list(_examples(data, where, answers))
    if not examples:
        raise InvalidInput(f"{where}: holds no examples", reason="CALIBRATION_EMPTY")
    chosen = examples[skip:][: len(examples) if limit is None else limit]
    if not chosen:
        raise InvalidInput(
            f"{where}: has {len(examples)} examples, so skipping {skip} leaves none",
            reason="CALIBRATION_EMPTY",
        )
    return chosen


def check_task(task: str) -> None:
    """Raise InvalidInput for a name that cannot be a task's."""
    if not _TASK.fullmatch(task) or task == GENERALIST_TASK:
        raise InvalidInput(
            f"task {task!r} is no task name; use lower-case letters, digits, '.', '_' and '-', not \"generalist\"",
            reason="TASK_INVALID",
        )


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
