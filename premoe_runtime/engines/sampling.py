"""Choosing the next token of one sequence."""

from __future__ import annotations

import torch

from premoe_runtime.engines.base import SamplingParams
from premoe_runtime.formats.errors import CorruptData, InvalidInput

MAX_STOP_STRINGS = 16
MAX_SEED = 2**64 - 1


def check_sampling(params: SamplingParams) -> None:
    """Raise InvalidInput for values that no request may carry."""
    if params.max_tokens < 1:
        raise InvalidInput(f"max_tokens is {params.max_tokens}; it must be at least 1", reason="MAX_TOKENS_INVALID")
    if not 0.0 <= params.temperature < float("inf"):
        raise InvalidInput(
            f"temperature is {params.temperature}; it must be 0 (greedy) or above", reason="TEMPERATURE_INVALID"
        )
    if not 0.0 < params.top_p <= 1.0:
        raise InvalidInput(f"top_p is {params.top_p}; it must lie in (0, 1]", reason="TOP_P_INVALID")
    if len(params.stop) > MAX_STOP_STRINGS or not all(params.stop):
        raise InvalidInput(f"stop takes at most {MAX_STOP_STRINGS} strings, none of them empty", reason="STOP_INVALID")
    if params.seed is not None and not 0 <= params.seed <= MAX_SEED:
        raise InvalidInput(f"seed is {params.seed}; it must lie in 0 … 2^64 - 1", reason="SEED_INVALID")


class Sampler:
    """Draws the tokens of one sequence from a generator of its own, so its neighbours in a batch cannot shift it.

    A token costs one draw; greedy costs none. The draw is inverted through the cumulative distribution in float64
    over tokens sorted by probability, ties by id, so a seed gives one answer on every device.
    """

    def __init__(self, params: SamplingParams) -> None:
        self._temperature = params.temperature
        self._top_p = params.top_p
        self._generator = torch.Generator()
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed)

    @property
    def greedy(self) -> bool:
        return self._temperature == 0.0

    def choose(self, logits: torch.Tensor) -> int:
        """The next token id. ``logits``: float[V]. Raises CorruptData when they hold a NaN or +inf."""
        logits = logits.float()
        if not torch.isfinite(logits.max()):
            raise CorruptData("the model's logits are not finite; the weights may be damaged", reason="LOGITS_INVALID")
        if self.greedy:
            return int(logits.argmax())
        return self._draw(nucleus(logits.cpu(), self._temperature, self._top_p))

    def _draw(self, probabilities: torch.Tensor) -> int:
        ordered, ids = probabilities.sort(descending=True, stable=True)
        cumulative = ordered.cumsum(0)
        point = torch.rand((), generator=self._generator, dtype=torch.float64) * cumulative[-1]
        rank = int(torch.searchsorted(cumulative, point, right=True))
        return int(ids[min(rank, int((ordered > 0).sum()) - 1)])


def nucleus(logits: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """f64[V]: softmax(logits / temperature), zero outside the smallest set whose mass reaches ``top_p``.

    The likeliest token always stays (Holtzman et al. 2020, "The curious case of neural text degeneration", eq. 2).
    Not renormalised.
    """
    shifted = logits.double() - logits.max()
    probabilities = torch.softmax(shifted / temperature, dim=-1)
    if top_p >= 1.0:
        return probabilities
    ordered, ids = probabilities.sort(descending=True, stable=True)
    before = ordered.cumsum(0) - ordered
    return probabilities.index_fill(0, ids[before >= top_p], 0.0)
