"""Prompts that can never fit are refused by their length, before they are turned into tokens whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from premoe_runtime.formats.errors import InvalidInput

_TOKEN_CHARACTERS = 8
"""Characters of a piece for each token of the context: most text has fewer a token, so that one piece tells."""
_MOST_CHARACTERS = 1 << 18
"""Of a piece: tokenizers take some 300 bytes of memory for each."""
_CUT_TOKENS = 16
"""Tokens that a cut through the text may add to its pieces; more than any cut was seen to."""


class FastTokenizer(Protocol):
    """What is needed of a transformers tokenizer (a fast one)."""

    @property
    def backend_tokenizer(self) -> Any: ...

    def get_vocab(self) -> dict[str, int]: ...


@dataclass(frozen=True, slots=True)
class PromptRoom:
    """How much text a context has room for. ``longest``: bytes of the longest token; None: one may stand for any."""

    tokenizer: FastTokenizer
    context: int
    longest: int | None

    @classmethod
    def of(cls, tokenizer: FastTokenizer, context: int) -> PromptRoom:
        # As written in the vocabulary a token has at least the bytes that it stands for.
        longest = max((len(token.encode()) for token in tokenizer.get_vocab()), default=None)
        return cls(tokenizer, context, None if _joins_unknown(tokenizer) else longest)

    def check(self, text: str) -> None:
        """Raise InvalidInput (CONTEXT_LENGTH_EXCEEDED) for a text of more tokens than the context. Bounded in time and
        memory by the context, whatever the length of the text.
        """
        size = min(_TOKEN_CHARACTERS * self.context, _MOST_CHARACTERS)
        if len(text) < self.context:
            return
        if self.longest is not None and len(text.encode()) > self.context * self.longest:
            raise self._too_long()
        tokens, start = 0, 0
        while start < len(text) and len(text) > size:
            tokens += self._count(text[start : start + size]) - _CUT_TOKENS
            start += size
            if tokens > self.context:
                raise self._too_long()

    def check_turns(self, count: int) -> None:
        """The same for a conversation of ``count`` messages: each takes a token at least."""
        if count > self.context:
            raise self._too_long()

    def _count(self, text: str) -> int:
        (encoded,) = self.tokenizer.backend_tokenizer.encode_batch_fast([text], add_special_tokens=False)
        return len(encoded)

    def _too_long(self) -> InvalidInput:
        return InvalidInput(
            f"this model's maximum context length is {self.context} tokens, at least one of them for the answer, but "
            "the prompt has more; shorten the prompt",
            reason="CONTEXT_LENGTH_EXCEEDED",
        )


def _joins_unknown(tokenizer: FastTokenizer) -> bool:
    """Whether any run of unknown characters becomes one token."""
    model = tokenizer.backend_tokenizer.model
    fuses = getattr(model, "fuse_unk", False) and not getattr(model, "byte_fallback", False)
    return bool(fuses and getattr(model, "unk_token", None))
