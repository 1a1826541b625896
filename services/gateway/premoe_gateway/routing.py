"""Which worker gets a request: a pure function of what the workers said and of who ran a pattern last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from premoe_gateway.domain import WorkerState

AFFINITY_SLACK = 4
"""Sequences by which a worker that has the pattern's experts may be busier than the idlest one."""


def choose_worker(
    states: Sequence[WorkerState], pattern_id: str, last_patterns: Mapping[str, Sequence[str]]
) -> WorkerState | None:
    """The worker to send a pattern to, or None when there is none.

    A worker that ran the pattern lately (``last_patterns``: address → newest pattern ids first) has most of its
    experts in slots or host memory, so it wins unless it is clearly busier. Among equals: the one whose pattern is
    freshest, then the less busy, then one that has run no other pattern yet, then the lower address.
    """
    if not states:
        return None
    idlest = min(state.load for state in states)

    def cost(state: WorkerState) -> tuple[int, int, int, str]:
        recent = list(last_patterns.get(state.address, ()))
        if pattern_id in recent and state.load <= idlest + AFFINITY_SLACK:
            return (recent.index(pattern_id) - len(recent), state.load, len(recent), state.address)
        return (1, state.load, len(recent), state.address)

    return min(states, key=cost)
