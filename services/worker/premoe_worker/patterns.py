"""Which experts a request keeps: from a choice, by id or by a task's name, to a pattern cut to its budget."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, lru_cache, partial

import numpy as np

from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.choices import Allocation
from premoe_runtime.formats.errors import Conflict, InvalidInput, NotFound
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.formats.ranking import Ranking
from premoe_runtime.serving.requests import KeptPattern
from premoe_worker.domain import PatternChoice
from premoe_worker.limits import Limits
from premoe_worker.ports import Retrieval
from premoe_worker.split import SplitWatch

_CACHED_CUTS = 1024
_ID_LENGTH = 64
"""Hexadecimal digits of a pattern id; a task's name has fewer."""


class Patterns:
    """Those of one model, as its retrieval service has them. Use from one event loop."""

    def __init__(self, retrieval: Retrieval | None, limits: Limits, manifest: Manifest) -> None:
        self._retrieval = retrieval
        self._limits = limits
        self._manifest = manifest
        self._splits = None if retrieval is None else SplitWatch(limits, retrieval, manifest)
        # Of the same pattern every request gets the same value: what is worked out from it is worked out once.
        self._cut = lru_cache(_CACHED_CUTS)(cut)
        self._check_ranking = lru_cache(_CACHED_CUTS)(partial(check_ranking, manifest))

    @property
    def split_problem(self) -> str:
        """Why the slots do not spread as the live pattern set says; empty when they do, or need not."""
        return "" if self._splits is None else self._splits.problem

    async def first(self) -> KeptPattern | None:
        """The live set's generalist or first pattern; None where there is no set. Raises what ``kept`` raises."""
        if self._retrieval is None:
            return None
        pattern_id = await self._retrieval.first_pattern(self._manifest.weights_id)
        return (await self.kept(pattern_id))[0] if pattern_id else None

    @cached_property
    def _full(self) -> KeptPattern:
        return KeptPattern.full(self._manifest.exists)

    async def resolve(self, choice: PatternChoice) -> tuple[PatternChoice, KeptPattern, Budget]:
        """The experts to keep for a choice, and the budget that says so."""
        manifest = self._manifest
        if choice.decision == "reject":
            raise Conflict(f"no stored task fits this prompt: {choice.reason}", reason="UNKNOWN_TASK")
        if choice.decision == "full":
            return choice, self._full, Budget(manifest.top_k, manifest.num_experts)
        if choice.decision == "generalist" and not choice.pattern_id:
            pattern_id = await self.retrieval().generalist(manifest.weights_id)
            if not pattern_id:
                raise NotFound("the live pattern set has no generalist", reason="PATTERN_NOT_FOUND")
            choice = replace(choice, pattern_id=pattern_id)
        if not choice.pattern_id:
            raise InvalidInput("a specialist needs a pattern id", reason="PATTERN_MISSING")
        choice = await self._by_task(choice)
        return (choice, *await self.kept(choice.pattern_id))

    async def _by_task(self, choice: PatternChoice) -> PatternChoice:
        """The same choice with the id behind what may be the name of a task of the live set."""
        if len(choice.pattern_id) == _ID_LENGTH:
            return choice
        tasks = await self.retrieval().live_tasks(self._manifest.weights_id)
        if choice.pattern_id not in tasks:
            return choice
        return replace(choice, pattern_id=tasks[choice.pattern_id], task=choice.task or choice.pattern_id)

    async def kept(self, pattern_id: str) -> tuple[KeptPattern, Budget]:
        """A pattern cut to its budget, and that. Raises NotFound, InvalidInput (of other weights), Unavailable."""
        ranking = await self.retrieval().ranking(pattern_id)
        self._check_ranking(ranking)
        if self._splits is not None:
            await self._splits.saw(pattern_id)
        limits = self._limits
        budget = limits.generalist_budget if ranking.generalist else limits.budget
        return self._cut(ranking, budget, limits.slots, limits.allocation), budget

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


def cut(ranking: Ranking, budget: Budget, slots: tuple[int, ...], allocation: Allocation) -> KeptPattern:
    """A pattern's best experts. Raises InvalidInput when the slots do not hold them."""
    return KeptPattern(ranking.pattern_id, ranking.kept(budget, slots, allocation), ranking.semantics)
