"""What single tokens write, byte for byte: the characters of one may be only part of a letter."""

from __future__ import annotations

from typing import Any, Protocol

from transformers.convert_slow_tokenizer import bytes_to_unicode

from premoe_runtime.engines.text import REPLACEMENT, Tokenizer, TokenText

_BYTES = {character: byte for byte, character in bytes_to_unicode().items()}
"""By the character that byte-level vocabularies write for each."""


class NamingTokenizer(Tokenizer, Protocol):
    """What is needed of a transformers tokenizer."""

    def convert_ids_to_tokens(self, ids: list[int]) -> Any: ...

    def __call__(self, text: str, **options: Any) -> Any: ...


class TokenBytes:
    """Made once a model; each token is looked up once."""

    def __init__(self, tokenizer: NamingTokenizer) -> None:
        self._tokenizer = tokenizer
        self._text = TokenText(tokenizer)
        self._special: dict[int, bytes] = {token_id: name.encode() for name, token_id in self._text.special.items()}
        self._known: dict[int, bytes] = {}
        anchor = tokenizer("a", add_special_tokens=False)["input_ids"]
        self._anchor = [int(token) for token in anchor]
        self._anchored = self._text.decode(self._anchor)

    def is_special(self, token_id: int) -> bool:
        """Whether it has no text in an answer."""
        return token_id in self._special

    def of(self, token_id: int, *, first: bool = False) -> bytes:
        """What a token adds to the text before it, or is as the ``first`` of all; a special one's name."""
        if first and token_id not in self._special and token_id not in self._text.bytes:
            alone = self._text.decode([token_id])
            if REPLACEMENT not in alone:
                return alone.encode()
        known = self._known.get(token_id)
        if known is None:
            known = self._known[token_id] = self._look_up(token_id)
        return known

    def names(self, token_ids: list[int]) -> list[str]:
        """As they stand in the vocabulary; "" for ids that it leaves out."""
        return [name or "" for name in self._tokenizer.convert_ids_to_tokens(token_ids)]

    def _look_up(self, token_id: int) -> bytes:
        if token_id in self._special:
            return self._special[token_id]
        if token_id in self._text.bytes:
            return bytes([self._text.bytes[token_id]])
        joined: str = self._text.decode([*self._anchor, token_id])
        text = joined.removeprefix(self._anchored) if joined.startswith(self._anchored) else joined
        (name,) = self.names([token_id])
        if REPLACEMENT in text and all(character in _BYTES for character in name):
            return bytes(_BYTES[character] for character in name)
        return text.encode()
