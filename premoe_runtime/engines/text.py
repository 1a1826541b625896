"""Text of a growing token sequence: whole characters only, and nothing that may turn out to be a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

REPLACEMENT = "\ufffd"
LONGEST_INCOMPLETE = 3
"""Bytes of an unfinished UTF-8 character, and so replacement characters that may still change."""
WINDOW = 16
"""Tokens that are decoded again for the next one; more than any decoder looks back."""
_FIRST_MARK = 0xD800
"""Marks are halves of surrogate pairs: no text holds them."""


class Tokenizer(Protocol):
    """What is needed of a transformers tokenizer."""

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]: ...

    def decode(
        self, token_ids: Sequence[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool
    ) -> str: ...

    def convert_tokens_to_ids(self, tokens: list[str]) -> Any: ...


class TokenText:
    """What a tokenizer's tokens stand for; made once a model.

    ``bytes``: value by id of the tokens that write a byte each (SentencePiece's byte fallback); empty where there are
    none. ``special``: id by text of the tokens that have no text in an answer.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.items()
        self.special = {token.content: token_id for token_id, token in added if token.special}
        ids = tokenizer.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in range(256)])
        values = {token_id: byte for byte, token_id in enumerate(ids) if token_id is not None}
        whole = len(values) == 256 and self.decode([ids[byte] for byte in "é".encode()]) == "é"
        self.bytes: Mapping[int, int] = values if whole else {}

    def decode(self, token_ids: Sequence[int]) -> str:
        """Without special tokens; spaces stay as they are, for cleaning them up would change what was shown."""
        return self._tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def settled_length(text: str) -> int:
    """How many leading characters no further token can change: all but a short tail of replacement characters."""
    tail = len(text) - len(text.rstrip(REPLACEMENT))
    return len(text) - min(tail, LONGEST_INCOMPLETE)


class Detokenizer:
    """Decodes token by token in bounded time. Holds back bytes of an incomplete character until it is complete.

    The text is that of the whole sequence: ``prompt`` decides what its first token begins with, a space for one. Bytes
    that make no character are replaced, and cost none of the characters beside them.
    """

    def __init__(self, text: TokenText, prompt: Sequence[int] = ()) -> None:
        self._text = text
        self._window: list[int] = []
        self._sent = 0
        self._tail, self._before = "", 0
        self._pending: list[int] = []
        """Byte tokens of an incomplete character: of a run with one, decoders make nothing but replacements."""
        for token in prompt[-WINDOW:]:
            self.push(token)
        # A prompt may end in the middle of a character, which is the answer's only if the answer completes it.
        self._before = len(self._pending)
        self._tail = self._text.decode(self._window)[self._sent :]

    def push(self, token_id: int) -> str:
        """New text, possibly empty."""
        if token_id in self._text.bytes:
            return self._push_byte(token_id)
        return self._give_up_pending() + self._extend([token_id])

    def flush(self) -> str:
        """Text still held back, replacement characters included."""
        text = self._text.decode(self._window)
        new, self._sent = text[self._sent :], len(text)
        return self._without_tail(new) + self._give_up_pending()

    def _push_byte(self, token_id: int) -> str:
        self._pending.append(token_id)
        new = ""
        while self._pending:
            try:
                _, complete = codecs.utf_8_decode(self._bytes(), "strict", False)
            except UnicodeDecodeError as error:
                new += REPLACEMENT if error.end > self._before else ""
                del self._pending[: error.end]
                self._before = max(0, self._before - error.end)
                continue
            if not complete:
                break
            new += self._extend(self._pending[:complete])
            del self._pending[:complete]
            self._before = 0
        return new

    def _give_up_pending(self) -> str:
        text = self._bytes().decode(errors="replace") if len(self._pending) > self._before else ""
        self._pending.clear()
        self._before = 0
        return text

    def _bytes(self) -> bytes:
        return bytes(self._text.bytes[token_id] for token_id in self._pending)

    def _extend(self, token_ids: Sequence[int]) -> str:
        self._window += token_ids
        text = self._text.decode(self._window)
        settled = settled_length(text)
        new = text[self._sent : settled]
        if settled > self._sent:
            new, self._sent = self._without_tail(new), settled
        if len(self._window) > 2 * WINDOW:
            self._shift(len(text) - self._sent)
        return new

    def _without_tail(self, new: str) -> str:
        """``new`` without what the prompt's last bytes alone have become."""
        tail, self._tail = self._tail, ""
        return new.removeprefix(tail)

    def _shift(self, unsent: int) -> None:
        start = len(self._window) - WINDOW
        while self._text.bytes.get(self._window[start], 0) & 0xC0 == 0x80:
            start -= 1  # not in the middle of a character's bytes
        self._window = self._window[start:]
        self._sent = len(self._text.decode(self._window)) - unsent


class StopMatcher:
    """Finds the first stop string across token borders and holds back what may be the beginning of one.

    A stop string may hold ``special`` tokens (id by text), which have no text in the answer but are found all the same.
    One that is in no stop string parts the text: none is found across it.
    """

    def __init__(self, stops: Sequence[str], special: Mapping[str, int] | None = None) -> None:
        ids = special or {}
        named = sorted((text for text in ids if text and any(text in stop for stop in stops)), key=len, reverse=True)
        marks = {text: chr(_FIRST_MARK + number) for number, text in enumerate(named)}
        self._marks = {ids[text]: mark for text, mark in marks.items()}
        self._parting = frozenset(ids.values()) - self._marks.keys()
        self._unmark = dict.fromkeys(map(ord, marks.values()))
        for text, mark in marks.items():
            stops = [stop.replace(text, mark) for stop in stops]
        self._stops = tuple(stops)
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str, token_id: int | None = None, *, too_early: bool = False) -> str:
        """Text that is certain to precede every stop string. After a match: what precedes it, then nothing more.

        ``token_id``: the token that brought the text. ``too_early``: stop strings that it completes do not count.
        """
        if self.matched is not None:
            return ""
        self._held += text
        if token_id in self._marks:
            self._held += self._marks[token_id]
        stops = () if too_early else self._stops
        hits = [(index, stop) for stop in stops if (index := self._held.find(stop)) >= 0]
        if hits:
            # The match that is complete first wins; of those ending together, the one that starts first.
            index, self.matched = min(hits, key=lambda hit: (hit[0] + len(hit[1]), hit[0]))
            released, self._held = self._held[:index], ""
            return released.translate(self._unmark)
        parted = token_id in self._parting
        keep = 0 if parted else max((overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        released, self._held = self._held[:cut], self._held[cut:]
        return released.translate(self._unmark)

    def flush(self) -> str:
        """The held-back text, when the sequence ends without a match."""
        released, self._held = self._held, ""
        return released.translate(self._unmark)


def overlap(text: str, stop: str) -> int:
    """Length of the longest proper prefix of ``stop`` that ``text`` ends with."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
