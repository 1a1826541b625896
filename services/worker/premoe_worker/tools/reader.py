"""Calls of tools, read out of an answer's text as it comes."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence

from premoe_servicekit.texts import whole_text

from premoe_runtime.engines.text import overlap
from premoe_worker.domain import ToolCall
from premoe_worker.tools.formats import ToolForm

Piece = str | ToolCall


class ToolReader:
    """Splits one answer into text and calls. What looks like a call and is none stays text.

    White space before and after calls is no text. ``special``: id by text of tokens that have no text of their own.
    """

    def __init__(self, form: ToolForm, special: Mapping[str, int]) -> None:
        self._form = form
        self._marks = {special[text]: text for text in (form.mark, form.close) if text in special}
        self._held = ""
        self._inside = self._began = False

    def push(self, text: str, token_ids: Sequence[int] = ()) -> list[Piece]:
        """What is certain by now; ``token_ids`` brought the text."""
        self._held += text + "".join(self._marks.get(token, "") for token in token_ids)
        return list(self._settled())

    def close(self) -> list[Piece]:
        """The rest, at the answer's end: models leave the last closing mark out, or are cut off."""
        pieces = list(self._settled())
        if self._inside:
            pieces += calls_or_text(self._held, self._form.mark)
        elif self._held.strip() or (self._held and not self._began):
            pieces.append(self._held)
        self._held, self._inside = "", False
        return pieces

    def _settled(self) -> Iterator[Piece]:
        while True:
            if not self._inside:
                before, found, after = self._held.partition(self._form.mark)
                if not found:
                    yield from self._certain()
                    return
                if before.strip():
                    yield before.rstrip()
                self._held, self._inside, self._began = after, True, True
            if not self._form.close or self._form.close not in self._held:
                return
            body, _, self._held = self._held.partition(self._form.close)
            yield from calls_or_text(body, self._form.mark, self._form.close)
            self._inside = False

    def _certain(self) -> Iterator[str]:
        """All but what may begin a mark, and white space that may stand before one."""
        end = len(self._held) - overlap(self._held, self._form.mark)
        end = len(self._held[:end].rstrip())
        if end:
            text, self._held = self._held[:end], self._held[end:]
            yield text


def calls_or_text(body: str, mark: str, close: str = "") -> Sequence[Piece]:
    """The calls between two marks; all of it as text if there are none."""
    calls = calls_in(body)
    return calls if calls else (mark + body + close,)


def calls_in(body: str) -> list[ToolCall]:
    """The calls of a JSON object, or of a list of them; none if any is wrong, or holds numbers that JSON has not."""
    try:
        document = json.loads(body)
        calls = [_call(entry) for entry in (document if isinstance(document, list) else [document])]
    except (ValueError, RecursionError):
        return []
    whole = [call for call in calls if call is not None]
    return whole if len(whole) == len(calls) else []


def _call(entry: object) -> ToolCall | None:
    if not isinstance(entry, dict):
        return None
    name, arguments = entry.get("name"), entry.get("arguments", {})
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    # Nine letters and digits: what the strictest template takes back.
    written = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    return ToolCall(secrets.token_hex(5)[:9], whole_text(name), whole_text(written))
