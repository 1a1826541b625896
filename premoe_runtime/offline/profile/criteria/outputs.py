"""Scores of what experts give: one look at every chosen expert's output f in the forward pass.

g: combine weights; c: tokens that chose the expert; norms are Euclidean.
"""

from __future__ import annotations

import numpy as np

from premoe_runtime.formats.arrays import F64
from premoe_runtime.offline.profile.criteria.router import MC_SUITE
from premoe_runtime.offline.profile.criteria.score import Score, apart, entropy, mean_of, mean_of_chosen
from premoe_runtime.offline.profile.state import COUNTS, ProfileState, Sum

UNIFIED = "the unified family, arXiv 2606.15716"

NORM = Sum("norm", "outputs", "chosen", lambda seen: seen.weights * seen.norms)
PLAIN_NORM = Sum("plain_norm", "outputs", "chosen", lambda seen: seen.norms)
SQUARES = Sum("squares", "outputs", "chosen", lambda seen: seen.norms.square())
TURNED = Sum("turned", "stream", "chosen", lambda seen: seen.weights * seen.norms * seen.turn[:, None])
OUTPUTS = Sum("outputs", "outputs", "vector", lambda seen: seen.vectors)
OUTPUT_SQUARES = Sum("output_squares", "outputs", "vector", lambda seen: seen.vectors.square(), bits=30)
OUTPUT_OUTLIERS = Sum("output_outliers", "outputs", "chosen", lambda seen: seen.outliers, whole=True)
INPUTS = Sum("inputs", "outputs", "vector", lambda seen: seen.directions)


def _alike(state: ProfileState) -> F64:
    """Minus the mean cosine of pairs of inputs, (‖Σ x/‖x‖‖² - c) / (c² - c): who only sees the same goes first.

    An expert with one token counts as seeing the same, -1; one with none comes last, -2.
    """
    chosen = state[COUNTS].astype(np.float64)
    square = (state[INPUTS] ** 2).sum(axis=-1)
    cosine = np.where(chosen > 1, (square - chosen) / np.maximum(chosen**2 - chosen, 1), 1.0)
    return np.where(chosen > 0, -cosine, -2.0)


SCORES = (
    Score("norm", "mean over tokens of g‖f‖", UNIFIED, (NORM,), mean_of(NORM), ("gate-norm",)),
    Score("reap", "Σ g‖f‖ / c", "REAP, arXiv 2510.13999", (NORM,), mean_of_chosen(NORM)),
    Score("ean", "mean over tokens of ‖f‖, 0 where not chosen", MC_SUITE, (PLAIN_NORM,), mean_of(PLAIN_NORM)),
    Score("man", "Σ ‖f‖ / c", UNIFIED, (PLAIN_NORM,), mean_of_chosen(PLAIN_NORM)),
    Score("msan", "Σ ‖f‖² / c", UNIFIED, (SQUARES,), mean_of_chosen(SQUARES)),
    Score(
        "easy-ep",
        "mean over tokens of g‖f‖·max(1 - cos(h - y, h), 0), h the layer's output, y = Σ g f its routed part",
        "EASY-EP, arXiv 2504.06792 (shared experts count as before)",
        (TURNED,),
        mean_of(TURNED),
    ),
    Score(
        "eas",
        "minus the sum of cosines of the mean output with the other experts'",
        MC_SUITE,
        (OUTPUTS,),
        apart(OUTPUTS),
    ),
    Score(
        "eae", "Σ over dimensions of log σ of f", MC_SUITE, (OUTPUTS, OUTPUT_SQUARES), entropy(OUTPUTS, OUTPUT_SQUARES)
    ),
    Score(
        "eao",
        "mean over its tokens of the number of entries of f beyond 3 root mean squares of f",
        MC_SUITE,
        (OUTPUT_OUTLIERS,),
        mean_of_chosen(OUTPUT_OUTLIERS),
    ),
    Score("ets", "minus the mean cosine between the inputs of two of its tokens", MC_SUITE, (INPUTS,), _alike),
)
