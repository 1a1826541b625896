"""Log probabilities in the shapes of OpenAI's two APIs. Pure."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Literal

from premoe_gateway.domain import PlaceLogprobs, TokenLogprob

Json = dict[str, object]
Likelihoods = dict[str, list[object] | None]
"""A `logprobs` object."""

_LEAST = -9999.0
"""What others say for a token that cannot be; JSON has no infinity."""


class Shape:
    """Those of one choice, piece by piece. ``prompt``: text that the choice begins with, where it is echoed.

    Offsets of a completion count characters of its text: tokens that write part of a character lie where it begins,
    and special tokens take no room but where the prompt names them.
    """

    def __init__(self, kind: Literal["chat", "text"], prompt: str = "") -> None:
        self._kind = kind
        self._prompt = prompt
        self._offset = 0
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")

    def of(self, places: Sequence[PlaceLogprobs]) -> Likelihoods:
        """The `logprobs` object of the next tokens."""
        if self._kind == "chat":
            return {"content": [_entry(place) for place in places], "refusal": None}
        return {
            "tokens": [_name(place.chosen) for place in places],
            "token_logprobs": [_bounded(place.chosen.logprob) for place in places],
            "top_logprobs": [_likeliest(place) for place in places],
            "text_offset": [self._advance(place.chosen) for place in places],
        }

    def _advance(self, token: TokenLogprob) -> int:
        """Where the token begins; the next one begins after it."""
        if token.text and not token.special and token.text[0] & 0xC0 != 0x80:
            # Bytes before it that it does not complete are shown by themselves.
            self._offset += len(self._characters.decode(b"", final=True))
        offset, name = self._offset, token.text.decode(errors="replace")
        if not token.special:
            self._offset += len(self._characters.decode(token.text))
        elif name and self._prompt.startswith(name, offset):
            self._offset += len(name)
        return offset


def grow(told: Likelihoods, piece: Likelihoods) -> None:
    """Add those of the next tokens."""
    for name, values in piece.items():
        if (known := told[name]) is not None and values is not None:
            known += values


def _entry(place: PlaceLogprobs) -> Json:
    return {**_token(place.chosen), "top_logprobs": [_token(each) for each in place.top]}


def _token(token: TokenLogprob) -> Json:
    return {"token": _name(token), "logprob": _bounded(token.logprob), "bytes": list(token.text)}


def _likeliest(place: PlaceLogprobs) -> dict[str, float | None] | None:
    """The likeliest tokens and the one that stands there; None at the prompt's first, which nothing foretells."""
    if place.chosen.logprob is None:
        return None
    found: dict[str, float | None] = {}
    for token in (*place.top, place.chosen):
        found.setdefault(_name(token), _bounded(token.logprob))
    return found


def _bounded(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, _LEAST)


def _name(token: TokenLogprob) -> str:
    """Its text; of one that writes part of a character its bytes, as OpenAI shows them."""
    try:
        return token.text.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.text)
