"""Calibration text: one JSON object a line, ``{"prompt": …, "answer": …?}`` or ``{"messages": […]}``.

The files are written by hand and by scripts, so every fault is reported with file and line number. A line that is no
example at all ends the reading; one that no request could send either (an empty prompt, a tool's turn before the
answer) is passed over and counted.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import blake3

from premoe_runtime.formats.errors import InvalidInput, NotFound
from premoe_runtime.formats.pattern import GENERALIST_TASK
from premoe_runtime.storage import open_store

Answers = Literal["given", "own", "none"]
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""Roles that a request may have, and what the chat template is told: the gateway's own."""
_TASK = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
RESERVED_TASKS = (GENERALIST_TASK, "full", "reject")
"""What requests and policies call something else by."""


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


class PassedOver:
    """Collects what is not used of some data: one ``FILE:LINE: reason`` each, however often it is told."""

    def __init__(self) -> None:
        self._places: dict[str, None] = {}

    def __call__(self, place: str) -> None:
        self._places[place] = None

    @property
    def places(self) -> list[str]:
        """In the order in which they were told."""
        return list(self._places)

    @property
    def note(self) -> str:
        """One line about all of them; empty when there are none."""
        count = len(self._places)
        return f"{count} line{'s' * (count > 1)} passed over; the first: {next(iter(self._places))}" if count else ""


def read_calibration(
    path: Path,
    *,
    answers: Answers = "given",
    limit: int | None = None,
    skip: int = 0,
    passed_over: Callable[[str], None] = lambda place: None,
) -> list[Example]:
    """Read examples of a JSONL file; see ``parse_calibration``. Raises NotFound for a missing file."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound(f"{path}: no such calibration file", reason="CALIBRATION_NOT_FOUND") from error
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be read: {error.strerror}", reason="CALIBRATION_INVALID") from error
    return parse_calibration(data, str(path), answers=answers, limit=limit, skip=skip, passed_over=passed_over)


def load_calibration(
    source: str,
    *,
    answers: Answers = "given",
    limit: int | None = None,
    passed_over: Callable[[str], None] = lambda place: None,
) -> list[Example]:
    """Examples of a file, or of an object named by a URL (``s3://bucket/key``); see ``parse_calibration``.

    Raises NotFound (CALIBRATION_NOT_FOUND), and Unavailable when the object store does not answer.
    """
    if "://" not in source:
        return read_calibration(Path(source), answers=answers, limit=limit, passed_over=passed_over)
    folder, _, name = source.rpartition("/")
    try:
        data = open_store(folder).get(name)
    except NotFound as error:
        raise NotFound(f"{source}: no such calibration object", reason="CALIBRATION_NOT_FOUND") from error
    return parse_calibration(data, source, answers=answers, limit=limit, passed_over=passed_over)


def parse_calibration(
    data: bytes,
    where: str,
    *,
    answers: Answers = "given",
    limit: int | None = None,
    skip: int = 0,
    passed_over: Callable[[str], None] = lambda place: None,
) -> list[Example]:
    """Examples ``skip`` to ``skip + limit`` of JSON lines; blank lines and byte order marks are skipped.

    All lines are checked, whatever the limit. ``passed_over`` is told of lines that are not used, as
    ``FILE:LINE: reason``: nothing but emptiness, a turn that a request cannot have, or (``answers="given"``) no answer.
    Raises InvalidInput, with the line number, for broken JSON, a missing prompt or a wrong type, and when no line is
    left.
    """
    unused = PassedOver()
    examples = list(_examples(data, where, answers, unused))
    if not examples:
        if unused.places:
            raise InvalidInput(unused.places[0], reason="CALIBRATION_INVALID")
        raise InvalidInput(f"{where}: holds no examples; write one a line", reason="CALIBRATION_EMPTY")
    chosen = examples[skip:][: len(examples) if limit is None else limit]
    if not chosen:
        raise InvalidInput(
            f"{where}: has {len(examples)} examples, so skipping {skip} leaves none",
            reason="CALIBRATION_EMPTY",
        )
    for place in unused.places:
        passed_over(place)
    return chosen


def check_task(task: str) -> None:
    """Raise InvalidInput for a name that cannot be a task's."""
    if not _TASK.fullmatch(task) or task in RESERVED_TASKS:
        raise InvalidInput(
            f"task {task!r} is no task name; use lower-case letters, digits, '.', '_' and '-', and none of "
            + ", ".join(RESERVED_TASKS),
            reason="TASK_INVALID",
        )


def calibration_digest(examples: Sequence[Example]) -> str:
    """blake3 over messages and answers, free of file layout and key order."""
    state = blake3.blake3()
    for example in examples:
        turns = [[message.role, message.content] for message in example.messages]
        state.update(json.dumps([turns, example.answer], ensure_ascii=True).encode())
    return state.hexdigest()


class _Unusable(Exception):
    """A line that is an example, but none that a request could be."""


def _examples(data: bytes, where: str, answers: Answers, passed_over: Callable[[str], None]) -> Iterator[Example]:
    for number, raw in enumerate(_utf8(data, where).split(b"\n"), start=1):
        # Files that were joined have a mark inside, too.
        line = raw.removeprefix(codecs.BOM_UTF8)
        if not line.strip():
            continue
        place = f"{where}:{number}"
        try:
            yield _example(_object(line, place), place, number, answers)
        except _Unusable as reason:
            passed_over(f"{place}: {reason}")


def _utf8(data: bytes, where: str) -> bytes:
    """The same text as UTF-8, where a mark says that it is UTF-16."""
    if not data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data
    try:
        return data.decode("utf-16").encode()
    except UnicodeError as error:
        raise _invalid(where, "begins as UTF-16, but is not; save it as UTF-8") from error


def _object(line: bytes, place: str) -> dict[str, object]:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _invalid(place, f"is not UTF-8 at byte {error.start + 1}") from error
    except RecursionError as error:
        raise _invalid(place, "broken JSON: nested too deeply") from error
    except ValueError as error:
        detail = error.msg if isinstance(error, json.JSONDecodeError) else "too large a number"
        raise _invalid(place, f"broken JSON: {detail}") from error
    if not isinstance(value, dict):
        raise _invalid(place, 'is not a JSON object such as {"prompt": "…", "answer": "…"}')
    return value


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
    if not messages[-1].content.strip():
        raise _Unusable("the prompt is empty")
    if answers == "given" and not (answer or "").strip():
        raise _Unusable("has no answer; give one (`premoe profile --answers own` and `none` need none)")
    return Example(messages, answer, number)


def _conversation(value: object, place: str) -> tuple[tuple[Message, ...], str | None]:
    if not isinstance(value, list) or not value:
        raise _invalid(place, '"messages" is not a list with at least one message')
    turns = [_message(entry, f"messages[{index}]", place) for index, entry in enumerate(value)]
    answer = turns.pop().content if turns[-1].role == "assistant" else None
    if not turns or turns[-1].role != "user":
        raise _Unusable('"messages" has no user turn before the answer')
    return tuple(turns), answer


def _message(entry: object, name: str, place: str) -> Message:
    if not isinstance(entry, dict):
        raise _invalid(place, f'"{name}" is not an object with "role" and "content"')
    role = _text(entry.get("role"), f"{name}.role", place)
    if role not in _ROLES:
        raise _Unusable(f'"{name}.role" is {role!r}; requests have {", ".join(_ROLES)}')
    if entry.get("tool_calls") or entry.get("function_call"):
        raise _Unusable(f'"{name}" calls tools, which requests cannot')
    return Message(_ROLES[role], _content(entry.get("content"), f"{name}.content", place))


def _content(value: object, name: str, place: str) -> str:
    """Text, as it is or in the parts of a request."""
    if not isinstance(value, list):
        return _text(value, name, place)
    texts = []
    for index, part in enumerate(value):
        if not isinstance(part, dict):
            raise _invalid(place, f'"{name}[{index}]" is not an object with "type" and "text"')
        if part.get("type") != "text":
            raise _Unusable(f'"{name}[{index}]" is no text')
        texts.append(_text(part.get("text"), f"{name}[{index}].text", place))
    return "".join(texts)


def _text(value: object, name: str, place: str) -> str:
    if not isinstance(value, str):
        kind = "missing" if value is None else f"a {type(value).__name__}, expected text"
        raise _invalid(place, f'"{name}" is {kind}')
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise _Unusable(f'"{name}" holds half a surrogate pair, which is no text')
    return value


def _invalid(place: str, what: str) -> InvalidInput:
    return InvalidInput(f"{place}: {what}", reason="CALIBRATION_INVALID")
