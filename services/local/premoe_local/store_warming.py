"""Which experts a store's cache is to hold before a rollout, and waiting until it does."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from premoe_local.store_client import Counts, State
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.errors import Unavailable
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.formats.pattern import Pattern
from premoe_runtime.offline.patterns import library
from premoe_runtime.storage import Store

POLL_S = 0.5
STALLED_S = 300.0
"""A store that brings nothing for so long is not waited for any more."""
IDLE_POLLS = 4
"""So often in a row must a store say that nothing is under way: between two blobs that may be so for a moment."""


def everything(manifest: Manifest) -> list[ExpertId]:
    """All experts of a pack, by layer."""
    return [ExpertId(int(layer), int(expert)) for layer, expert in np.argwhere(manifest.exists)]


def of_patterns(patterns: Sequence[Pattern], budget: Budget) -> list[ExpertId]:
    """What any of the patterns keeps at the budget, best ranks first: those get the room where it is short.

    Patterns of one model. Raises InvalidInput for a budget that it cannot run.
    """
    shape = patterns[0].ranking.shape
    best = np.full(shape, shape[1])
    for pattern in patterns:
        ranks = np.argsort(pattern.ranking, axis=1)
        best = np.minimum(best, np.where(pattern.kept(budget), ranks, shape[1]))
    order = np.argsort(best, axis=None, kind="stable")[: np.count_nonzero(best < shape[1])]
    return [ExpertId(*divmod(int(flat), shape[1])) for flat in order]


def of_tasks(store: Store, manifest: Manifest, tasks: Sequence[str], budget: str | None) -> list[ExpertId]:
    """Experts of these tasks of the live set, or of all its patterns; half of every layer where no budget is named.

    Raises NotFound (no live set, no such task), InvalidInput (the budget), CorruptData.
    """
    live = library.load_set(store, manifest.weights_id)
    members = [live.member(task) for task in tasks] or live.members
    half = max(1, manifest.num_experts // 2)
    chosen = Budget(min(manifest.top_k, half), half) if budget is None else Budget.parse(budget)
    chosen.check(top_k=manifest.top_k, num_experts=manifest.num_experts)
    return of_patterns([Pattern.load(store.get, member.pattern_id) for member in members], chosen)


def wait(
    begin: Callable[[], Counts],
    state: Callable[[], State],
    tell: Callable[[Counts], None],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Counts:
    """Begin once, and tell how far it is until nothing is under way; what did not come is left under way.

    Not begun again: a full cache would take what it refused, and drop what has come. Blobs are counted over the whole
    pack, so that others' count too. Raises Unavailable after ``STALLED_S`` without news.
    """
    before = state().present
    begun = counts = begin()
    since, idle = clock(), 0
    while counts.under_way and idle < IDLE_POLLS:
        tell(counts)
        sleep(POLL_S)
        now = state()
        come = min(begun.under_way, max(0, now.present - before))
        if begun.present + come > counts.present:
            counts, since = Counts(begun.present + come, begun.under_way - come, begun.refused), clock()
        elif clock() - since > STALLED_S:
            raise Unavailable(
                f"{counts.under_way} experts are missing, and none has come for {STALLED_S:.0f} s; "
                "the expert store's log says why",
                reason="PREFETCH_STALLED",
            )
        idle = idle + 1 if now.under_way == 0 else 0
    tell(counts)
    return counts
