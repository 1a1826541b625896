"""Text of a growing token sequence: whole characters only, and nothing that may turn out to be a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

REPLACEMENT = "\ufffd"
LONGEST_INCOMPLETE = 3
"""Bytes of an unfinished UTF-8 character, and so replacement characters that may still change."""
WINDOW = 16
"""Tokens that are decoded again for the next one; more than any decoder looks back."""


class Decoder(Protocol):
    """What is needed of a tokenizer."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...


def settled_length(text: str) -> int:
    """How many leading characters no further token can change: all but a short tail of replacement characters."""
    tail = len(text) - len(text.rstrip(REPLACEMENT))
    return len(text) - min(tail, LONGEST_INCOMPLETE)


class Detokenizer:
    """Decodes token by token in bounded time. Holds back bytes of an incomplete character until it is complete."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._window: list[int] = []
        self._sent = 0

    def push(self, token_id: int) -> str:
        """New text, possibly empty."""
        self._window.append(token_id)
        text = self._decode(self._window)
        settled = settled_length(text)
        new = text[self._sent : settled]
        self._sent = max(self._sent, settled)
        if len(self._window) > 2 * WINDOW:
            self._shift(len(text) - self._sent)
        return new

    def flush(self) -> str:
        """Text still held back, replacement characters included."""
        text = self._decode(self._window)
        new, self._sent = text[self._sent :], len(text)
        return new

    def _shift(self, unsent: int) -> None:
        self._window = self._window[-WINDOW:]
        self._sent = len(self._decode(self._window)) - unsent

    def _decode(self, token_ids: list[int]) -> str:
        return self._decoder.decode(token_ids, skip_special_tokens=True)


class StopMatcher:
    """Finds the first stop string across token borders and holds back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """Text that is certain to precede every stop string. After a match: what precedes it, then nothing more."""
        if self.matched is not None:
            return ""
        self._held += text
        hits = [(index, stop) for stop in self._stops if (index := self._held.find(stop)) >= 0]
        if hits:
            # The match that is complete first wins; of those ending together, the one that starts first.
            index, self.matched = min(hits, key=lambda hit: (hit[0] + len(hit[1]), hit[0]))
            released, self._held = self._held[:index], ""
            return released
        keep = max((overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        released, self._held = self._held[:cut], self._held[cut:]
        return released

    def flush(self) -> str:
        """The held-back text, when the sequence ends without a match."""
        released, self._held = self._held, ""
        return released


def overlap(text: str, stop: str) -> int:
    """Length of the longest proper prefix of ``stop`` that ``text`` ends with."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
