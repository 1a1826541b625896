"""What a request and its tokens do to logits before anything is drawn: biases, penalties, ends that come too early."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from premoe_runtime.engines.params import SamplingParams

_IDS, _BIAS, _FACTOR, _MINUS = range(4)

Floats = npt.NDArray[np.float64]


class Adjustment:
    """One sequence's changes, as a table of the tokens that have some. Costs a step what its own tokens need, no more.

    A logit x becomes (x + bias) / factor - minus, or (x + bias) · factor - minus below zero: bias first, then the
    repetition penalty over prompt and answer, then frequency and presence penalties over the answer alone.
    """

    def __init__(self, params: SamplingParams, prompt: Sequence[int], end_ids: frozenset[int]) -> None:
        self._params = params
        self._penalises = (params.presence_penalty, params.frequency_penalty, params.repetition_penalty) != (0, 0, 1)
        self._places: dict[int, int] = {}
        self._table: Floats = np.empty((4, 64))
        self._seen: set[int] = set()
        self._made = 0
        self._barred: dict[int, float] = {}
        """Bias of each end token that may not come yet."""
        for token, bias in dict(params.logit_bias).items():
            self._column(token)[_BIAS] = bias
        if params.repetition_penalty != 1.0:
            for token in dict.fromkeys(prompt):
                self._column(token)[_FACTOR] = params.repetition_penalty
        if params.min_tokens:
            for token in end_ids:
                column = self._column(token)
                self._barred[token] = float(column[_BIAS])
                column[_BIAS] = -math.inf

    @classmethod
    def of(cls, params: SamplingParams, prompt: Sequence[int], end_ids: frozenset[int]) -> Adjustment | None:
        """None where nothing is asked for. ``end_ids``: tokens that would end the answer."""
        found = cls(params, prompt, end_ids)
        return found if found._penalises or found._places else None

    def note(self, token: int) -> None:
        """The answer has one more token."""
        self._made += 1
        if self._made == self._params.min_tokens:
            for barred, bias in self._barred.items():
                self._column(barred)[_BIAS] = bias
        if self._penalises:
            column = self._column(token)
            column[_FACTOR] = self._params.repetition_penalty
            column[_MINUS] += self._params.frequency_penalty
            if token not in self._seen:
                self._seen.add(token)
                column[_MINUS] += self._params.presence_penalty

    def rows(self) -> Floats:
        """f64[4, N]: id, bias, factor and minus of every token with a change."""
        return self._table[:, : len(self._places)]

    def _column(self, token: int) -> Floats:
        """f64[4], to be written to before the next is asked for; a new one changes nothing yet."""
        place = self._places.get(token)
        if place is None:
            place = self._places[token] = len(self._places)
            if place == self._table.shape[1]:
                self._table = np.concatenate([self._table, np.empty_like(self._table)], axis=1)
            self._table[:, place] = (token, 0.0, 1.0, 0.0)
        return self._table[:, place]


def adjusted(adjustments: Sequence[Adjustment | None], values: torch.Tensor) -> torch.Tensor:
    """``values`` f32[B, V] with each row's changes; the same tensor where there are none. One copy to the device."""
    parts = [(row, each.rows()) for row, each in enumerate(adjustments) if each is not None]
    if not parts:
        return values
    table = np.concatenate([rows for _, rows in parts], axis=1)
    # Ids count through the whole batch, exactly in float64.
    table[_IDS] += np.repeat([row * values.shape[1] for row, _ in parts], [rows.shape[1] for _, rows in parts])
    changes = torch.from_numpy(table).to(values.device)
    places, flat = changes[_IDS].long(), values.flatten()
    changed = flat[places].double() + changes[_BIAS]
    changed = torch.where(changed > 0, changed / changes[_FACTOR], changed * changes[_FACTOR]) - changes[_MINUS]
    return flat.scatter(0, places, changed.to(flat.dtype)).view_as(values)
