"""Scores of the weights alone: what no text can change. They are taken once, when a profile first meets the layer.

W: an expert's matrices gate, up and down; biases do not count.
"""

from __future__ import annotations

from premoe_runtime.offline.profile.criteria.router import MC_SUITE
from premoe_runtime.offline.profile.criteria.score import Score
from premoe_runtime.offline.profile.state import Sum

SIMILARITY = Sum("weight_similarity", "weights", "fixed", lambda seen: seen.similarity)
ROUTER_NORM = Sum("router_norm", "weights", "fixed", lambda seen: seen.router_norm)
STABLE_RANK = Sum("stable_rank", "weights", "fixed", lambda seen: seen.stable_rank)
WEIGHT_NORM = Sum("weight_norm", "weights", "fixed", lambda seen: seen.weight_norm)

SCORES = (
    Score(
        "ews",
        "minus the sum of cosines of its weights, as one vector, with the other experts'",
        MC_SUITE,
        (SIMILARITY,),
        lambda state: -state[SIMILARITY],
    ),
    Score("rwn", "‖row of the router‖", MC_SUITE, (ROUTER_NORM,), lambda state: state[ROUTER_NORM]),
    Score(
        "wsr", "mean over its matrices of ‖W‖²_F / ‖W‖²_2", MC_SUITE, (STABLE_RANK,), lambda state: state[STABLE_RANK]
    ),
    Score("ewn", "‖its weights as one vector‖", MC_SUITE, (WEIGHT_NORM,), lambda state: state[WEIGHT_NORM]),
)
