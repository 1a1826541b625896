"""How one request wants its tokens chosen: a value that crosses processes, and what it may hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from premoe_runtime.formats.errors import InvalidInput

MAX_STOP_STRINGS = 16
MAX_STOP_TOKENS = 128
MAX_SEED = 2**64 - 1
MAX_BIASED = 300
MAX_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """``temperature`` 0 is greedy; ``top_p`` 1 turns the nucleus off, ``top_k`` 0 the cut to the likeliest k, which
    comes before the nucleus, ``min_p`` 0 the cut to those at least so likely beside the likeliest, before both.

    Before all that, logits change by ``logit_bias`` (id, what is added), then by penalties: ``repetition_penalty``
    divides (below zero: multiplies) those of the prompt's and the answer's tokens, ``frequency_penalty`` is taken off
    for every time that the answer has a token, ``presence_penalty`` once. ``min_tokens``: before so many nothing but
    ``max_tokens`` ends the answer. ``logprobs``: of every token chosen and of so many likeliest; None: none.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def check(self, vocabulary: int | None = None) -> None:
        """Raise InvalidInput for values that no request may carry, or that none to a model of so many tokens may."""
        for name, holds, wanted in _RULES:
            if not holds(self):
                value = str(getattr(self, name))
                raise _invalid(name, f"is {value if len(value) <= _SHOWN else 'too much'}; it must {wanted}")
        for name, ids in (("logit_bias", dict(self.logit_bias)), ("stop_token_ids", self.stop_token_ids)):
            if vocabulary is not None and not all(0 <= token < vocabulary for token in ids):
                raise _invalid(name, f"holds token ids outside 0 … {vocabulary - 1}, the model's own")


_SHOWN = 100
_RULES: tuple[tuple[str, Callable[[SamplingParams], bool], str], ...] = (
    ("max_tokens", lambda p: p.max_tokens >= 1, "be at least 1"),
    ("temperature", lambda p: 0.0 <= p.temperature < float("inf"), "be 0 (greedy) or above"),
    ("top_p", lambda p: 0.0 < p.top_p <= 1.0, "lie in (0, 1]"),
    (
        "stop",
        lambda p: len(p.stop) <= MAX_STOP_STRINGS and all(p.stop),
        f"have {MAX_STOP_STRINGS} strings at most, none empty",
    ),
    ("seed", lambda p: p.seed is None or 0 <= p.seed <= MAX_SEED, "lie in 0 … 2^64 - 1"),
    ("top_k", lambda p: p.top_k >= 0, "be 0 (off) or above"),
    ("min_p", lambda p: 0.0 <= p.min_p <= 1.0, "lie in 0 (off) … 1"),
    ("presence_penalty", lambda p: -2.0 <= p.presence_penalty <= 2.0, "lie in -2 … 2"),
    ("frequency_penalty", lambda p: -2.0 <= p.frequency_penalty <= 2.0, "lie in -2 … 2"),
    # Beyond these bounds logits would leave their type; 1 is off.
    ("repetition_penalty", lambda p: 0.001 <= p.repetition_penalty <= 1000.0, "lie in 0.001 … 1000"),
    (
        "logit_bias",
        lambda p: len(p.logit_bias) <= MAX_BIASED and all(-100.0 <= bias <= 100.0 for _, bias in p.logit_bias),
        f"have {MAX_BIASED} tokens at most, each with a number in -100 … 100",
    ),
    ("min_tokens", lambda p: 0 <= p.min_tokens <= p.max_tokens, "lie in 0 … max_tokens"),
    # Fewer than there are tokens, so that some are left to choose before min_tokens.
    ("stop_token_ids", lambda p: len(p.stop_token_ids) <= MAX_STOP_TOKENS, f"have {MAX_STOP_TOKENS} at most"),
    ("logprobs", lambda p: 0 <= (p.logprobs or 0) <= MAX_LOGPROBS, f"lie in 0 … {MAX_LOGPROBS}"),
    ("prompt_logprobs", lambda p: 0 <= (p.prompt_logprobs or 0) <= MAX_LOGPROBS, f"lie in 0 … {MAX_LOGPROBS}"),
)


def _invalid(name: str, problem: str) -> InvalidInput:
    return InvalidInput(f"{name} {problem}", reason=f"{name.upper()}_INVALID")
