"""Experts that are masked out: those of the tasks that this worker denies, and of those that a request does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

from premoe_runtime.formats.arrays import Mask
from premoe_runtime.formats.domains import Domains
from premoe_runtime.formats.errors import InvalidInput, NotFound, PremoeError, Unavailable
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.formats.pattern import GENERALIST_TASK
from premoe_runtime.formats.ranking import Ranking
from premoe_worker.ports import Retrieval

MOST_TASKS = 64
"""Tasks that a request may deny."""
_CACHED, _SETS = 256, 2
DENY_INVALID = "DENY_INVALID"


@dataclass(frozen=True, slots=True, eq=False)
class Denied:
    """``experts`` bool[L, E] of these tasks; ``asked``: by the request, and not by the worker alone."""

    tasks: tuple[str, ...]
    experts: Mask
    asked: bool


class Denials:
    """Of one model, by its live pattern set. ``always``: tasks that no request can have back.

    Use from one event loop.
    """

    def __init__(self, always: Sequence[str], manifest: Manifest) -> None:
        self.always = frozenset(always)
        self._manifest = manifest
        # Of the same tasks every request gets the same value: what is worked out from it is worked out once.
        self._domains = lru_cache(_SETS)(partial(domains_of, manifest))
        self._found = lru_cache(_CACHED)(self._find)
        self._joined = lru_cache(_CACHED)(self._join)

    async def of(self, asked: Sequence[str], retrieval: Retrieval) -> Denied | None:
        """What is masked out for a request that denies the tasks ``asked``; None: nothing.

        Raises InvalidInput for tasks that the request cannot deny, Unavailable where the worker's own cannot be told,
        so that nothing runs with their experts, and what ``retrieval`` raises.
        """
        wanted = frozenset(asked)
        if len(wanted) > MOST_TASKS:
            raise InvalidInput(f"deny: at most {MOST_TASKS} tasks, not {len(wanted)}", reason=DENY_INVALID)
        if not (wanted or self.always):
            return None
        rankings = await self._rankings(retrieval)
        fixed = None
        if self.always:
            try:
                fixed = self._found(self.always, rankings)
            except InvalidInput as error:
                raise _unknown_here(self.always, error) from error
        if wanted <= self.always:
            return fixed
        return self._joined(wanted | self.always, rankings, fixed)

    async def _rankings(self, retrieval: Retrieval) -> tuple[Ranking, ...]:
        """Those of every task of the live set."""
        try:
            live = await retrieval.live_tasks(self._manifest.weights_id)
            ids = [pattern_id for task, pattern_id in sorted(live.items()) if task != GENERALIST_TASK]
            return tuple([await retrieval.ranking(pattern_id) for pattern_id in ids])
        except NotFound as error:
            if self.always:
                raise _unknown_here(self.always, error) from error
            raise InvalidInput(f"deny: there are no tasks to deny, {error}", reason=DENY_INVALID) from error

    def _find(self, tasks: frozenset[str], rankings: tuple[Ranking, ...]) -> Denied:
        return Denied(tuple(sorted(tasks)), self._domains(rankings).own(tasks), asked=not tasks <= self.always)

    def _join(self, tasks: frozenset[str], rankings: tuple[Ranking, ...], fixed: Denied | None) -> Denied:
        """What a request adds takes nothing back of what the worker denies."""
        found = self._found(tasks, rankings)
        if fixed is None or np.array_equal(found.experts, found.experts | fixed.experts):
            return found
        return Denied(found.tasks, found.experts | fixed.experts, asked=True)


def domains_of(manifest: Manifest, rankings: tuple[Ranking, ...]) -> Domains:
    """Of the tasks of a set."""
    scores = {ranking.task: ranking.by_expert() for ranking in rankings}
    shared = all(ranking.allocation == "shared" for ranking in rankings)
    return Domains.of(scores, manifest.router, manifest.top_k, shared=shared)


def _unknown_here(tasks: frozenset[str], error: PremoeError) -> Unavailable:
    return Unavailable(
        f"this worker denies {', '.join(sorted(tasks))} and cannot tell which experts those are: {error}",
        reason="DENY_UNAVAILABLE",
    )
