"""A streamed OpenAI answer, read from bytes as they come: when text came, how it ended, what was wrong. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

_LINE_END = re.compile(rb"\r\n|\n|\r(?=[^\n])")
"""A carriage return at the end of what has come may be half of a pair."""
MAX_EVENT_BYTES = 4 * 2**20


class CallFailed(Exception):
    """A call without a whole answer. ``code`` is short and is counted, ``detail`` is for people."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


class EventStream:
    """Server-sent events out of bytes, cut anywhere."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._waiting_bytes = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The data of every event that is now complete. Raises CallFailed (``bad_stream``) for one without end."""
        *lines, self._rest = _LINE_END.split(self._rest + data)
        for line in lines:
            if not line and self._data:
                yield b"\n".join(self._data)
                self._data, self._waiting_bytes = [], 0
            name, _, value = line.partition(b":")
            if name == b"data":
                self._data.append(value.removeprefix(b" "))
                self._waiting_bytes += len(value)
        if self._waiting_bytes + len(self._rest) > MAX_EVENT_BYTES:
            raise CallFailed("bad_stream", f"one event is larger than {MAX_EVENT_BYTES >> 20} MiB")


class AnswerReader:
    """One answer of chat completions or completions."""

    def __init__(self) -> None:
        self.moments: list[float] = []
        """When chunks with text came."""
        self.prompt_tokens = 0
        self._completion_tokens: int | None = None
        self._events = EventStream()
        self._finished = False

    @property
    def completion_tokens(self) -> int:
        """As the endpoint counts them; chunks with text, where it does not."""
        return len(self.moments) if self._completion_tokens is None else self._completion_tokens

    def feed(self, data: bytes, now: float) -> None:
        """Read on. Raises CallFailed for what is no chunk of an answer, and for an error sent in the stream."""
        for event in self._events.feed(data):
            if event.strip() == b"[DONE]":
                self._finished = True
            else:
                self._chunk(_object(event), now)

    def end(self) -> None:
        """Raise CallFailed (``cut``) when the answer was not whole."""
        if not self._finished:
            raise CallFailed("cut", "the stream ended before the answer did")

    def _chunk(self, chunk: dict[str, Any], now: float) -> None:
        error = chunk.get("error")
        if error:
            raise _told(error)
        choices, usage = chunk.get("choices"), chunk.get("usage")
        if not isinstance(choices, list):
            raise CallFailed("bad_stream", f"an event is no chunk of an answer: {shortened(json.dumps(chunk))}")
        for choice in choices:
            if _text(choice):
                self.moments.append(now)
            self._finished = self._finished or bool(choice.get("finish_reason"))
        if isinstance(usage, dict):
            self.prompt_tokens = _count(usage.get("prompt_tokens")) or 0
            self._completion_tokens = _count(usage.get("completion_tokens"))


def shortened(text: str, limit: int = 200) -> str:
    """One line of at most ``limit`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _object(event: bytes) -> dict[str, Any]:
    try:
        value = json.loads(event.decode())
    except (ValueError, RecursionError) as error:
        detail = f"an event is no JSON: {shortened(event.decode(errors='replace'))}"
        raise CallFailed("bad_stream", detail) from error
    if not isinstance(value, dict):
        raise CallFailed("bad_stream", f"an event is no JSON object: {shortened(event.decode())}")
    return value


def _told(error: object) -> CallFailed:
    if not isinstance(error, dict):
        return CallFailed("stream_error", shortened(str(error)))
    code = error.get("code") or error.get("type") or "stream_error"
    return CallFailed(shortened(str(code), 40), shortened(str(error.get("message") or "")))


def _text(choice: object) -> bool:
    """Whether a choice brings text, an answer's or a thought's."""
    if not isinstance(choice, dict):
        raise CallFailed("bad_stream", f"a choice is no JSON object: {shortened(str(choice))}")
    delta = choice.get("delta")
    parts = delta if isinstance(delta, dict) else choice
    return any(parts.get(name) for name in ("content", "reasoning_content", "reasoning", "text"))


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None
