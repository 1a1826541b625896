"""Scores of what routers do, from a plain forward pass: PEU and its relatives, SEER, MC-Suite's inference criteria.

s: raw logits of the layer's n experts; C: the k experts that the router chose (its own choice: correction biases and
groups count); p = softmax of s over C; g: combine weights.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from premoe_runtime.formats.arrays import F64, I64
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.offline.profile.criteria.score import Score, Values, mean_of
from premoe_runtime.offline.profile.state import COUNTS, P_BINS, SOFT, TOKENS, ProfileState, Sum

PREMOE_3 = "PreMoE v3, arXiv 2505.17639, eq. 1–4 and 10"
PREMOE_1 = "PreMoE v1, arXiv 2505.17639v1, and its code"
MC_SUITE = "MC-Suite, arXiv 2504.05586"

UTILITY = Sum("utility", "router", "binned", lambda seen: seen.chosen.maximum(seen.chosen.sigmoid()))
UTILITY_SIGMOID = Sum("utility_sigmoid", "router", "binned", lambda seen: seen.chosen.sigmoid())
UTILITY_EXP = Sum("utility_exp", "router", "binned", lambda seen: seen.chosen.exp(), bits=12)
MAX_P = Sum("max_p", "router", "layer", lambda seen: seen.p.amax(dim=-1))
TOP_LOGIT = Sum("top_logit", "router", "best", lambda seen: seen.top)
TOP_UTILITY = Sum("top_utility", "router", "best", lambda seen: seen.top.maximum(seen.top.sigmoid()))
ALL_LOGITS = Sum("all_logits", "router", "every", lambda seen: seen.logits)
CHOSEN_LOGITS = Sum("chosen_logits", "router", "chosen", lambda seen: seen.chosen)
PAIRS = Sum("pairs", "router", "pairs", lambda seen: seen.ones, whole=True)
WORDS = Sum("words", "router", "words", lambda seen: seen.token_ids, whole=True)


def threshold_bins(state: ProfileState) -> I64:
    """i64[L]: r_l, the mean of the tokens' largest p (PreMoE v3, eq. 4), as the nearest bin edge (of 256).

    The last bin always passes: it holds p = 1, which is all there is at top-1.
    """
    return _edge(state[MAX_P] / np.maximum(state[TOKENS], 1))


def _edge(threshold: F64) -> I64:
    return np.clip(np.rint(threshold * P_BINS), 0, P_BINS - 1).astype(np.int64)


def _peu(utility: Sum, threshold: float | None = None) -> Values:
    """Mean over all tokens of f(s)·[expert in C and p ≥ r]; r is ``threshold`` or r_l (``threshold_bins``)."""

    def values(state: ProfileState) -> F64:
        edges = threshold_bins(state)[:, None] if threshold is None else _edge(np.array(threshold))
        passed = np.arange(P_BINS) >= edges
        total: F64 = np.where(passed.reshape(-1, 1, P_BINS), state[utility], 0.0).sum(axis=-1)
        return total / state[TOKENS][:, None]

    return values


def at_threshold(score: Score, text: str) -> Score:
    """A PEU score at a fixed r, as ``peu@0.15`` names it. Raises InvalidInput for any other score, or text."""
    try:
        threshold = float(text)
    except ValueError:
        threshold = -1.0
    if score.sums[1:] != (MAX_P,) or not 0 <= threshold <= 1:
        raise InvalidInput(
            f"score {f'{score.name}@{text}'[:80]!r} is not known: peu, peu-sigmoid and peu-exp take a threshold of 0 "
            "to 1, such as peu@0.15",
            reason="SCORE_UNKNOWN",
        )
    return replace(
        score, name=f"{score.name}@{threshold:g}", sums=score.sums[:1], of=_peu(score.sums[0], threshold), aliases=()
    )


def _collaboration(state: ProfileState) -> F64:
    """Σ over other experts of log₂(1 + tokens that chose both).

    MC-Suite counts the tokens themselves; with k experts a token that is (k - 1) c, the order of frequency. The
    logarithm lets breadth count: an expert that works with many others stands before one that always has the same.
    """
    pairs = state[PAIRS]
    own = np.log2(1 + np.diagonal(pairs, axis1=1, axis2=2))
    return np.asarray(np.log2(1 + pairs).sum(axis=-1) - own)


def _vocabulary(state: ProfileState) -> F64:
    return np.asarray(np.bitwise_count(state[WORDS].view(np.uint64)).sum(axis=-1), np.float64)


SCORES = (
    Score(
        "peu",
        "mean over tokens of max(s, σ(s))·[in C, p ≥ r], r the layer's mean of max p; peu@0.15: a fixed r",
        PREMOE_3,
        (UTILITY, MAX_P),
        _peu(UTILITY),
    ),
    Score(
        "peu-sigmoid", "the same with σ(s) for max(s, σ(s))", PREMOE_3, (UTILITY_SIGMOID, MAX_P), _peu(UTILITY_SIGMOID)
    ),
    Score("peu-exp", "the same with exp(s)", PREMOE_3, (UTILITY_EXP, MAX_P), _peu(UTILITY_EXP)),
    Score(
        "tcess",
        "mean over tokens of s of the expert with the largest logit",
        PREMOE_1,
        (TOP_LOGIT,),
        mean_of(TOP_LOGIT),
    ),
    Score(
        "tcess-positive",
        "tcess with max(s, σ(s)) for s: no expert falls below idle ones for a negative logit",
        f"{PREMOE_1}; the repair of v3, section 3.2",
        (TOP_UTILITY,),
        mean_of(TOP_UTILITY),
    ),
    Score("all-logits", "mean over tokens of s", "PreMoE v3, tables 1 and C.1", (ALL_LOGITS,), mean_of(ALL_LOGITS)),
    Score(
        "act-logits",
        "mean over tokens of s·[in C]",
        "PreMoE v3, tables 1 and C.1",
        (CHOSEN_LOGITS,),
        mean_of(CHOSEN_LOGITS),
    ),
    Score("seer", "mean over tokens of g", "SEER-MoE, arXiv 2404.05089", (SOFT,), mean_of(SOFT), ("seer-soft",)),
    Score(
        "counts",
        "share of tokens that chose the expert",
        "SEER-MoE, arXiv 2404.05089; EUF of MC-Suite, arXiv 2504.05586",
        (COUNTS,),
        mean_of(COUNTS),
        ("seer-hard", "frequency", "euf"),
    ),
    Score("ecc", "Σ over other experts of log₂(1 + tokens that chose both)", MC_SUITE, (PAIRS,), _collaboration),
    Score(
        "evtc", "number of different tokens of the vocabulary that chose the expert", MC_SUITE, (WORDS,), _vocabulary
    ),
)
