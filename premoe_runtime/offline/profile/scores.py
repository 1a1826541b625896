"""The one registry of scores, and what they make of a profile. Pure numpy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

import blake3
import numpy as np

from premoe_runtime.families.registry import FAMILIES
from premoe_runtime.families.spec import FamilySpec
from premoe_runtime.formats.arrays import F64, I64, Mask
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.pattern import Metric
from premoe_runtime.offline.profile.criteria import gradients, outputs, router, weights
from premoe_runtime.offline.profile.criteria.score import Score
from premoe_runtime.offline.profile.state import BASE, COUNTS, MASS, TOKENS, Needs, ProfileState, Sum

RANDOM = Score(
    "random", "a hash of seed, layer and expert", "baseline", (), lambda state: random_scores(state.shape, 0)
)
SCORES: Mapping[str, Score] = {
    score.name: score for score in (*router.SCORES, *outputs.SCORES, *gradients.SCORES, *weights.SCORES, RANDOM)
}
"""Every score by its name."""
USUAL: tuple[Metric, ...] = ("peu", "seer", "tcess", "counts", "norm", "impact")
"""Scores that a profile is measured for unless others are asked for."""
ROUTER_ONLY = tuple(name for name in USUAL if SCORES[name].needs == ("router",))
"""Those of them that a plain forward pass gives."""
SUMS: Mapping[str, Sum] = {one.name: one for one in (*BASE, *(s for score in SCORES.values() for s in score.sums))}
"""Every sum by its name."""
_NAMED = {**SCORES} | {alias: score for score in SCORES.values() for alias in score.aliases}


NEEDS: Mapping[Needs, str] = {
    "router": "a forward pass",
    "outputs": "a forward pass, outputs",
    "stream": "a forward pass, outputs",
    "gradient": "a backward pass",
    "loss": "a backward pass of its own",
    "weights": "weights",
}
"""What a score takes, in words."""


def find(name: str) -> Score:
    """The score of this name or alias; ``peu@0.15`` is PEU at that threshold. Raises InvalidInput (SCORE_UNKNOWN)."""
    plain, separator, threshold = name.partition("@")
    score = _NAMED.get(plain)
    if score is None:
        near = get_close_matches(plain, _NAMED, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InvalidInput(
            f"score {name[:80]!r} is not known; {hint}`premoe scores` lists them", reason="SCORE_UNKNOWN"
        )
    return router.at_threshold(score, threshold) if separator else score


def sums_of(names: Sequence[str]) -> tuple[Sum, ...]:
    """What a profile adds up so that these scores can be taken of it. Raises InvalidInput like ``find``."""
    return tuple(dict.fromkeys((*BASE, *(each for name in names for each in find(name).sums))))


def measured_for(metric: Metric | None) -> tuple[Metric, ...]:
    """Scores to measure so that this one ranks: the usual ones where they do. Raises InvalidInput like ``find``."""
    if metric is None or set(sums_of([metric])) <= set(sums_of(USUAL)):
        return USUAL
    return (find(metric).name,)


def refuse_family(names: Sequence[str], family: str) -> None:
    """Raise InvalidInput (SCORE_UNSUPPORTED) for a score that this family cannot give, with the reason.

    A family that is not known is refused by whoever loads the model.
    """
    for score in map(find, names):
        reason = refusal(score, FAMILIES[family]) if family in FAMILIES else ""
        if reason:
            raise InvalidInput(
                f"score {score.name} cannot be taken of {family}: {reason}; `premoe scores` says which can",
                reason="SCORE_UNSUPPORTED",
            )


def refusal(score: Score, family: FamilySpec) -> str:
    """Why this family cannot give the score; empty where it can."""
    if "stream" in score.needs and family.reshapes_output:
        return f"a block {family.reshapes_output}, so what the experts gave cannot be told apart in its output"
    return ""


def not_of(score: Score, families: Iterable[FamilySpec]) -> list[str]:
    """Names of the families that cannot give the score."""
    return [family.name for family in families if refusal(score, family)]


def has(state: ProfileState, metric: Metric) -> bool:
    """Whether the profile holds what the score is made of."""
    return all(each in state for each in find(metric).sums)


def scores(state: ProfileState, metric: Metric, *, seed: int = 0) -> F64:
    """f64[L, E] of one score; ``seed`` matters for "random" only.

    Raises InvalidInput: a score that is not known, a profile of no tokens or without what the score is made of.
    """
    score = find(metric)
    if not state[TOKENS].all():
        raise InvalidInput("the profile has seen no tokens, so it ranks nothing", reason="PROFILE_EMPTY")
    if not has(state, metric):
        raise InvalidInput(
            f"the profile was not measured for the score {score.name!r}: profile the task again with --score "
            f"{score.name}, or rank by peu",
            reason="PROFILE_WITHOUT_SCORE",
        )
    return random_scores(state.shape, seed) if score is RANDOM else np.asarray(score.of(state), np.float64)


def counts(state: ProfileState) -> I64:
    """i64[L, E]: tokens that chose the expert."""
    return state[COUNTS].astype(np.int64)


def retained_mass(state: ProfileState, kept: Mask) -> float:
    """Share of the full router's probability that falls on ``kept`` bool[L, E]: mean over tokens and layers."""
    total = state[MASS].sum(axis=1)
    return float((np.where(kept, state[MASS], 0.0).sum(axis=1) / total).mean())


def random_scores(shape: tuple[int, int], seed: int) -> F64:
    """f64[L, E] in [0, 1) from a seed."""
    # Hashed rather than drawn: the ranking is the same for every version of numpy.
    names = (f"{seed}/{layer}/{expert}" for layer in range(shape[0]) for expert in range(shape[1]))
    values = [int.from_bytes(blake3.blake3(name.encode()).digest(8), "little") / 2**64 for name in names]
    return np.array(values).reshape(shape)
