"""Choosing the next token of every sequence of a step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from premoe_runtime.engines.adjustment import Adjustment, adjusted
from premoe_runtime.engines.params import SamplingParams
from premoe_runtime.formats.errors import CorruptData, InvalidInput

CANDIDATES = 512
"""Likeliest tokens of a row that leave the device. Only draws that they cannot decide look at the whole vocabulary."""
SLACK = 1e-9
"""Bound on the error of sums of probabilities in float64, whatever the order in which a device adds them up."""

Floats = npt.NDArray[np.float64]


class Sampler:
    """How one sequence's tokens are chosen, with a generator of its own, so its neighbours in a batch cannot shift it.

    A token costs one draw; greedy costs none. The draw is inverted through the cumulative distribution in float64
    over tokens sorted by probability, ties by id, so a seed gives one answer on every device. ``prompt`` and
    ``end_ids``, the tokens that would end the answer, are what penalties and ``min_tokens`` go by.
    """

    def __init__(
        self, params: SamplingParams, prompt: Sequence[int] = (), end_ids: frozenset[int] = frozenset()
    ) -> None:
        self.temperature = params.temperature
        self.top_p = params.top_p
        self.top_k = params.top_k
        self.min_p = params.min_p
        self.adjustment = Adjustment.of(params, prompt, end_ids)
        self._generator = torch.Generator()
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed)

    def note(self, token: int) -> None:
        """The answer has one more token."""
        if self.adjustment is not None:
            self.adjustment.note(token)

    def likely(self, shifted: Floats) -> int:
        """How many tokens reach ``min_p``; ``shifted``: f64[N], (logit - highest) / temperature."""
        return int((shifted >= math.log(self.min_p)).sum())

    def draw(self) -> float:
        """The next number in [0, 1)."""
        return float(torch.rand((), generator=self._generator, dtype=torch.float64))


def choose_batch(
    samplers: Sequence[Sampler], logits: torch.Tensor, *, candidates: int = CANDIDATES
) -> list[int | Exception]:
    """The next token id of each row; CorruptData for a row that holds a NaN or +inf, which fails only itself.

    ``logits``: float[B, V], a row per sampler. The device is waited for once, but for draws that the ``candidates``
    likeliest tokens of their row leave open; tokens do not depend on ``candidates``.
    """
    values = adjusted([sampler.adjustment for sampler in samplers], logits.float())
    rows, vocabulary = values.shape
    drawing = [index for index, sampler in enumerate(samplers) if sampler.temperature > 0]
    highest, likeliest = _likeliest(values)
    drawn = values if len(drawing) == rows else values[drawing]
    heads = _heads(drawn, [samplers[index].temperature for index in drawing], min(candidates, vocabulary))
    # Ids are exact in float64: one tensor, one copy, one wait.
    host: Floats = torch.cat([highest.double(), likeliest.double(), heads.flatten()]).cpu().numpy()
    finite = np.isfinite(host[:rows])
    chosen: list[int | Exception] = [int(token) for token in host[rows : 2 * rows]]
    for index, head in zip(drawing, host[2 * rows :].reshape(heads.shape), strict=True):
        if finite[index]:
            sampler = samplers[index]
            point = sampler.draw()
            token = _from_head(head, vocabulary, sampler, point)
            if token is None:
                token = _from_row(values[index], sampler, point)
            chosen[index] = token
    for index in np.flatnonzero(~finite).tolist():
        chosen[index] = _unusable(samplers[index], float(host[index]))
    return chosen


def _likeliest(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """f32[B] and i64[B]: the highest logit of each row, NaN where there is one, and its first id."""
    if values.device.type != "cpu":
        highest, ids = values.max(-1)
        return highest, ids
    # Torch's own takes ten times as long on a CPU: 4 ms for 32 rows of 150,000.
    ids = torch.from_numpy(values.numpy().argmax(-1))
    return values.gather(-1, ids[:, None])[:, 0], ids


def _unusable(sampler: Sampler, highest: float) -> Exception:
    """Why no token of a row can be chosen."""
    if highest == -math.inf and sampler.adjustment is not None:
        return InvalidInput(
            "min_tokens bars every token that could come next; ask for fewer, or for fewer stop_token_ids",
            reason="MIN_TOKENS_INVALID",
        )
    return CorruptData("the model's logits are not finite; the weights may be damaged", reason="LOGITS_INVALID")


def _heads(values: torch.Tensor, temperatures: list[float], count: int) -> torch.Tensor:
    """f64[B, 1 + 2 * count]: the sum of exp((logit - highest) / temperature), the highest logits, their ids."""
    best, ids = values.topk(count)
    heat = torch.tensor(temperatures, dtype=torch.float64).to(values.device)[:, None]
    mass = [
        # In place, a few rows at a time: on a CPU fresh pages for float64 copies cost more than the sums.
        part.double().sub_(top).div_(hot).exp_().sum(-1, keepdim=True)
        for part, top, hot in zip(*(torch.split(each, 8) for each in (values, best[:, :1], heat)), strict=True)
    ]
    return torch.cat([torch.cat(mass), best.double(), ids.double()], dim=-1)


@np.errstate(over="ignore")  # of a temperature next to zero
def _from_head(head: Floats, vocabulary: int, sampler: Sampler, point: float) -> int | None:
    """The token that ``_from_row`` would find, if the head of ``_heads`` tells beyond doubt."""
    logits, ids = head[1:].reshape(2, -1)
    whole = len(ids) == vocabulary
    shifted = (logits - logits[0]) / sampler.temperature
    weights, mass = np.exp(shifted), head[0]
    known, top_p = whole, sampler.top_p
    kept = min(sampler.top_k or vocabulary, vocabulary)
    if sampler.min_p:
        likely = sampler.likely(shifted)
        if likely == len(ids) < kept:
            return None
        kept = min(kept, likely)
    if kept < vocabulary:
        if kept > len(ids):
            return None
        weights = weights[:kept]
        known, mass = True, weights.sum()
    probabilities = weights / mass
    cumulative = probabilities.cumsum()
    low, high, inside = 1 - SLACK, 1 + SLACK, len(probabilities)
    if top_p < 1.0:
        before = cumulative - probabilities
        if not known and before[-1] < top_p + SLACK:
            return None
        # Tokens whose place is in doubt at the nucleus' edge only widen the interval in which its mass lies.
        inside, most = (max(1, int((before < top_p + doubt).sum())) for doubt in (-SLACK, SLACK))
        low, high = cumulative[inside - 1], cumulative[most - 1]
    rank, upper = np.searchsorted(cumulative, [point * low - SLACK, point * high + SLACK], side="right")
    if rank != upper or rank >= inside:
        return None
    # Equal probabilities go by id: of logits that float64 can hardly tell apart only equal ones are a sure tie.
    tied = np.flatnonzero(np.abs(shifted - shifted[rank]) <= SLACK)
    if (logits[tied] != logits[rank]).any() or (tied[-1] == len(ids) - 1 and not whole):
        return None
    return int(np.sort(ids[tied])[rank - tied[0]])


def _from_row(logits: torch.Tensor, sampler: Sampler, point: float) -> int:
    """Invert softmax(logits / temperature), cut by min-p, top-k and nucleus, at the share ``point`` of what is left.

    The nucleus is the smallest set of likeliest tokens whose mass reaches ``top_p`` (Holtzman et al. 2020, "The curious
    case of neural text degeneration", eq. 2); the likeliest token always belongs to it. ``logits``: f32[V].
    """
    shifted = logits.cpu().double()
    shifted = (shifted - shifted.max()) / sampler.temperature
    probabilities: Floats = torch.softmax(shifted, dim=-1).numpy()
    kept = min(sampler.top_k or len(probabilities), len(probabilities))
    if sampler.min_p:
        kept = min(kept, sampler.likely(shifted.numpy()))
    # Sorting values alone is ten times cheaper than sorting ids along; ids are looked up by value afterwards.
    ordered = np.sort(probabilities)[::-1]
    whole = 1.0
    if kept < len(ordered):
        ordered = ordered[:kept]
        whole = ordered.sum()
    if sampler.top_p < 1.0:
        ordered = ordered[ordered.cumsum() - ordered < sampler.top_p * whole]
    cumulative = ordered.cumsum()
    rank = min(
        int(np.searchsorted(cumulative, point * cumulative[-1], side="right")), int(np.count_nonzero(ordered)) - 1
    )
    tied = np.flatnonzero(probabilities == ordered[rank])
    return int(tied[rank - np.count_nonzero(ordered > ordered[rank])])
