"""Grammars in the engine: which tokens may come next so that an answer has the shape that was asked for."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from premoe_runtime.engines.grammar_check import limits
from premoe_runtime.formats.errors import InvalidInput

if TYPE_CHECKING:
    # Imported where it is needed: who asks for no grammar does not wait for it.
    from llguidance import LLMatcher, LLTokenizer

_KEPT, _KEPT_COSTLY = 32, 4
"""Compiled grammars that are kept: of one schema asked for again, or for n choices, only its state is copied."""
_COSTLY_SECONDS = 0.05
"""Of CPU to compile. Such grammars are large too, 5 to 100 MB each; common ones take milliseconds."""


class Matcher:
    """How far one answer has come in its grammar. Owned by the engine's thread."""

    def __init__(self, state: LLMatcher, vocabulary: int) -> None:
        self._state, self._vocabulary = state, vocabulary

    def allowed(self) -> npt.NDArray[np.bool_]:
        """bool[V]: what may come next; an end token only where the answer is complete. Raises InvalidInput when the
        grammar takes more than a step's share of time.
        """
        mask = self._state.compute_bitmask()
        self._check()
        bits = np.unpackbits(np.frombuffer(mask, np.uint8), count=self._vocabulary, bitorder="little")
        return bits.view(np.bool_)

    def accept(self, token: int) -> bool:
        """Take the chosen token; whether nothing but an end token may follow. Raises as ``allowed`` does."""
        self._state.consume_token(token)
        self._check()
        stopped: bool = self._state.is_stopped()
        return stopped

    def _check(self) -> None:
        if self._state.is_error():
            raise InvalidInput(
                f"the answer's grammar cannot be followed: {self._state.get_error()[:200]}; make it simpler",
                reason="GRAMMAR_TOO_COMPLEX",
            )


def constrain(logits: torch.Tensor, matchers: Sequence[Matcher | None]) -> dict[int, InvalidInput]:
    """Set ``logits`` float[B, V] to -inf where a row's grammar forbids the token; says what went wrong, by row.

    Rows without a matcher stay as they are.
    """
    failed: dict[int, InvalidInput] = {}
    for row, matcher in enumerate(matchers):
        if matcher is None:
            continue
        try:
            forbidden = torch.from_numpy(~matcher.allowed())
        except InvalidInput as error:
            failed[row] = error
        else:
            logits[row].masked_fill_(forbidden.to(logits.device), -torch.inf)
    return failed


class Grammars:
    """Compiles grammars for one model. ``vocabulary``: width of its logits. Any thread."""

    def __init__(self, tokenizer: Any, vocabulary: int, eos_ids: Collection[int]) -> None:
        self._tokenizer, self._vocabulary, self._eos_ids = tokenizer, vocabulary, sorted(eos_ids)
        self._tokens: LLTokenizer | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self._costly: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, grammar: str) -> Matcher:
        """Takes up to seconds, and the first time a second more for the vocabulary, without the interpreter's lock.

        Raises InvalidInput: the grammar is wrong, or the tokenizer is of a kind that no grammar can be used with.
        """
        from llguidance import LLMatcher

        with self._lock:
            for kept in (self._compiled, self._costly):
                if grammar in kept:
                    kept.move_to_end(grammar)
                    return Matcher(kept[grammar].deep_copy(), self._vocabulary)
            tokens, started = self._tokenizer_of_grammars(), time.thread_time()
            state = LLMatcher(tokens, grammar, log_level=0, limits=limits())
            if state.is_error():
                raise InvalidInput(state.get_error()[:300], reason="GRAMMAR_INVALID")
            costly = time.thread_time() - started > _COSTLY_SECONDS
            kept, most = (self._costly, _KEPT_COSTLY) if costly else (self._compiled, _KEPT)
            kept[grammar] = state
            if len(kept) > most:
                kept.popitem(last=False)
            return Matcher(state.deep_copy(), self._vocabulary)

    def _tokenizer_of_grammars(self) -> LLTokenizer:
        from llguidance import LLTokenizer

        if self._tokens is None:
            backend = copy(self._tokenizer.backend_tokenizer)
            backend.no_padding()
            backend.no_truncation()
            try:
                self._tokens = LLTokenizer(backend.to_str(), n_vocab=self._vocabulary, eos_token=self._eos_ids)
            except Exception as error:
                raise InvalidInput(
                    f"this model's tokenizer cannot follow a grammar: {error}", reason="GRAMMAR_UNSUPPORTED"
                ) from error
        return self._tokens
