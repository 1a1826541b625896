"""Which experts a request keeps: from a choice, by id or by a task's name, to a pattern cut to its budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial

import numpy as np
from premoe_servicekit.faults import own_fault

from premoe_runtime.formats.arrays import Mask
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.choices import Allocation
from premoe_runtime.formats.errors import Conflict, InvalidInput, NotFound
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.formats.ranking import Ranking
from premoe_runtime.serving.requests import KeptPattern
from premoe_worker.denials import DENY_INVALID, Denials, Denied
from premoe_worker.domain import PatternChoice
from premoe_worker.limits import Limits
from premoe_worker.ports import Retrieval
from premoe_worker.split import SplitWatch

_CACHED_CUTS = 1024
_ID_LENGTH = 64
"""Hexadecimal digits of a pattern id; a task's name has fewer."""


class Patterns:
    """Those of one model, as its retrieval service has them. Use from one event loop."""

    def __init__(
        self, retrieval: Retrieval | None, limits: Limits, manifest: Manifest, deny: Sequence[str] = ()
    ) -> None:
        """``deny``: tasks whose own experts no request gets."""
        self._retrieval = retrieval
        self._limits = limits
        self._manifest = manifest
        self._splits = None if retrieval is None else SplitWatch(limits, retrieval, manifest)
        # Of the same pattern every request gets the same value: what is worked out from it is worked out once.
        self._cut = lru_cache(_CACHED_CUTS)(cut)
        self._full = lru_cache(_CACHED_CUTS)(partial(cut_full, manifest))
        self._denials = Denials(deny, manifest)
        self._check_ranking = lru_cache(_CACHED_CUTS)(partial(check_ranking, manifest))

    @property
    def split_problem(self) -> str:
        """Why the slots do not spread as the live pattern set says; empty when they do, or need not."""
        return "" if self._splits is None else self._splits.problem

    @property
    def denies(self) -> tuple[str, ...]:
        """Tasks whose own experts no request gets."""
        return tuple(sorted(self._denials.always))

    async def first(self) -> KeptPattern | None:
        """The live set's generalist or first pattern; None where there is no set. Raises what ``kept`` raises."""
        if self._retrieval is None:
            return None
        pattern_id = await self._retrieval.first_pattern(self._manifest.weights_id)
        return (await self.kept(pattern_id))[0] if pattern_id else None

    async def denied(self, asked: Sequence[str]) -> Denied | None:
        """See ``Denials.of``. Raises InvalidInput (NO_RETRIEVAL) for a request that denies where nothing is known."""
        return await self._denials.of(asked, self.retrieval()) if asked or self._denials.always else None

    async def resolve(
        self, choice: PatternChoice, denied: Denied | None = None
    ) -> tuple[PatternChoice, KeptPattern, Budget]:
        """The experts to keep for a choice, and the budget that says so; without those that are ``denied``."""
        manifest = self._manifest
        if choice.decision == "reject":
            raise Conflict(f"no stored task fits this prompt: {choice.reason}", reason="UNKNOWN_TASK")
        if choice.decision == "full":
            return choice, self._full(denied), Budget(manifest.top_k, manifest.num_experts)
        if choice.decision == "generalist" and not choice.pattern_id:
            pattern_id = await self.retrieval().generalist(manifest.weights_id)
            if not pattern_id:
                raise NotFound("the live pattern set has no generalist", reason="PATTERN_NOT_FOUND")
            choice = replace(choice, pattern_id=pattern_id)
        if not choice.pattern_id:
            raise InvalidInput("a specialist needs a pattern id", reason="PATTERN_MISSING")
        choice = await self._by_task(choice)
        return (choice, *await self._kept(choice.pattern_id, denied))

    async def _by_task(self, choice: PatternChoice) -> PatternChoice:
        """The same choice with the id behind what may be the name of a task of the live set."""
        if len(choice.pattern_id) == _ID_LENGTH:
            return choice
        tasks = await self.retrieval().live_tasks(self._manifest.weights_id)
        if choice.pattern_id not in tasks:
            return choice
        return replace(choice, pattern_id=tasks[choice.pattern_id], task=choice.task or choice.pattern_id)

    async def kept(self, pattern_id: str) -> tuple[KeptPattern, Budget]:
        """A pattern cut to its budget, without what this worker denies, and the budget.

        Raises NotFound, InvalidInput (of other weights, denied as a whole), Unavailable.
        """
        return await self._kept(pattern_id, await self.denied(()))

    async def _kept(self, pattern_id: str, denied: Denied | None) -> tuple[KeptPattern, Budget]:
        ranking = await self.retrieval().ranking(pattern_id)
        self._check_ranking(ranking)
        if self._splits is not None:
            await self._splits.saw(pattern_id)
        limits = self._limits
        budget = limits.generalist_budget if ranking.generalist else limits.budget
        return self._cut(ranking, budget, limits.slots, limits.allocation, denied), budget

    def retrieval(self) -> Retrieval:
        """Raises InvalidInput (NO_RETRIEVAL) for a worker without."""
        if self._retrieval is None:
            raise InvalidInput(
                "this worker has no retrieval service, so it knows no patterns; start it with --retrieval",
                reason="NO_RETRIEVAL",
            )
        return self._retrieval


def check_ranking(manifest: Manifest, ranking: Ranking) -> None:
    """Raise InvalidInput for a pattern that was made for another model."""
    if ranking.weights_id != manifest.weights_id:
        raise InvalidInput(
            f"pattern {ranking.pattern_id} was made for other weights than this worker's", reason="PATTERN_WEIGHTS"
        )
    if not np.array_equal(ranking.scores > -np.inf, manifest.exists):
        raise InvalidInput(f"pattern {ranking.pattern_id} has another shape than the model", reason="PATTERN_SHAPE")


def cut(
    ranking: Ranking, budget: Budget, slots: tuple[int, ...], allocation: Allocation, denied: Denied | None = None
) -> KeptPattern:
    """A pattern's best experts, of those that are not denied.

    Raises InvalidInput when the slots do not hold them, or the denied ones leave some layer too few.
    """
    if denied is None:
        return KeptPattern(ranking.pattern_id, ranking.kept(budget, slots, allocation), ranking.semantics)
    left = (ranking.by_expert() > -np.inf) & ~denied.experts
    _check_left(left, budget.active, denied)
    kept = ranking.without(denied.experts).kept(budget, slots, allocation)
    return KeptPattern(ranking.pattern_id, kept, ranking.semantics, one_request=denied.asked)


def cut_full(manifest: Manifest, denied: Denied | None = None) -> KeptPattern:
    """Every expert that is not denied. Raises InvalidInput where some layer would have too few."""
    full = KeptPattern.full(manifest.exists)
    if denied is None:
        return full
    _check_left(left := full.kept & ~denied.experts, manifest.top_k, denied)
    return KeptPattern(full.id, left, one_request=denied.asked)


def _check_left(left: Mask, active: int, denied: Denied) -> None:
    counts = left.sum(axis=1)
    if counts.min() >= active:
        return
    error = InvalidInput(
        f"deny: without the experts of {', '.join(denied.tasks)} MoE layer {int(counts.argmin())} has "
        f"{int(counts.min())}, but a token needs {active}; deny fewer tasks",
        reason=DENY_INVALID,
    )
    raise error if denied.asked else own_fault(error)
