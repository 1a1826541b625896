"""Which experts a static checkpoint keeps, and whether cutting the others off is what the pattern means. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from premoe_runtime.formats.allocation import slots_text
from premoe_runtime.formats.arrays import Mask
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.manifest import Manifest, RouterSpec
from premoe_runtime.formats.pattern import Pattern

Spread = Literal["uniform", "equal-per-group", "ragged"]
"""How kept experts spread: equally many a layer, equally many in each group of it, or as the pattern shares them."""

Target = Literal["transformers", "premoe"]
"""What loads the checkpoint: stock transformers (and what reads its files), or `premoe pack`."""


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """What stays of a model: ``kept`` bool[L, E] of the pattern's experts, ``active`` of them a token."""

    pattern: Pattern
    kept: Mask
    active: int
    spread: Spread
    rescales: str
    """Why the cut model's combine weights are not those that the pattern asks for; empty where they are."""

    @property
    def layer_experts(self) -> tuple[int, ...]:
        return tuple(self.kept.sum(axis=1).tolist())

    def experts(self, layer: int) -> tuple[int, ...]:
        """The kept experts of a layer by their old numbers, ascending, which is the order of their new ones."""
        return tuple(np.flatnonzero(self.kept[layer]).tolist())


def usual_spread(router: RouterSpec) -> Spread:
    """The spread that every router of this kind takes."""
    return "uniform" if router.groups == 1 else "equal-per-group"


def kept_by(pattern: Pattern, budget: Budget, spread: Spread, manifest: Manifest) -> Mask:
    """bool[L, E]: what a pattern keeps of its model at a budget.

    Raises InvalidInput: a pattern of other weights, a budget or a spread that it does not give.
    """
    _check_weights(pattern, manifest)
    budget.check(top_k=manifest.top_k, num_experts=manifest.num_experts)
    if spread == "equal-per-group":
        return _equal_per_group(pattern, budget, manifest.router.groups)
    if spread == "uniform":
        return replace(pattern, allocation="uniform").kept(budget)
    if pattern.allocation == "uniform":
        raise InvalidInput(
            f"pattern {pattern.task} keeps equally many experts a layer; build one with --allocation shared, or leave "
            "--allocation ragged out",
            reason="SPREAD_INVALID",
        )
    return pattern.kept(budget)


def cut(
    pattern: Pattern,
    kept: Mask,
    manifest: Manifest,
    *,
    active: int,
    spread: Spread,
    target: Target,
    accept_rescale: bool = False,
) -> Cut:
    """What stays of a model of which a pattern keeps ``kept``, ``active`` experts a token, as a static checkpoint.

    Raises InvalidInput: what no stock router or what ``target`` does not take, and a router whose weights would change
    (NOT_EXACT) unless ``accept_rescale``.
    """
    router = manifest.router
    if router.score == "sparsemixer" and active != manifest.top_k:
        raise InvalidInput(
            f"{active} experts a token: sparsemixer always activates {manifest.top_k}; give {manifest.top_k}/…",
            reason="BUDGET_INVALID",
        )
    _check_counts(kept, active, target)
    _check_groups(kept, manifest, active)
    whole = np.array_equal(kept, manifest.exists)
    rescales = "" if whole or pattern.semantics == "slice" else rescaling(router)
    if rescales and not accept_rescale:
        raise InvalidInput(
            f"a {manifest.family} checkpoint without these experts is not the model that runs under this pattern: "
            f"{rescales}; serve the pattern instead, or take it with --accept-rescale",
            reason="NOT_EXACT",
        )
    return Cut(pattern, kept, active, spread, rescales)


def rescaling(router: RouterSpec) -> str:
    """Why a router with fewer rows weighs or chooses otherwise than the whole one restricted; empty where it does not.

    Sigmoids are each expert's own, a softmax over the chosen knows no others, and a renormalised softmax forgets what
    it was divided by. ``sparsemixer`` runs as if cut in any case (engines/hf/router.py).
    """
    if router.score != "softmax":
        return ""
    if router.bias:
        return "its router chooses by softmax + bias, and a softmax over fewer experts grows while the bias stays"
    if not router.renormalise:
        return "its router does not renormalise, so that a softmax over fewer experts makes their weights larger"
    return ""


def _check_weights(pattern: Pattern, manifest: Manifest) -> None:
    if pattern.weights_id != manifest.weights_id:
        raise InvalidInput(
            f"pattern {pattern.task} belongs to weights {pattern.weights_id[:12]}, the pack has "
            f"{manifest.weights_id[:12]}; profile this model",
            reason="WEIGHTS_MISMATCH",
        )
    if pattern.layer_experts != manifest.layer_experts:
        raise InvalidInput(
            f"pattern {pattern.task} is of {pattern.num_layers} layers of {slots_text(pattern.layer_experts)} experts, "
            f"the pack has {manifest.num_layers} of {slots_text(manifest.layer_experts)}",
            reason="PATTERN_SHAPE",
        )


def _equal_per_group(pattern: Pattern, budget: Budget, groups: int) -> Mask:
    """bool[L, E]: the best experts of each of a layer's groups of neighbours, ``budget.kept`` in all."""
    each, left = divmod(budget.kept, groups)
    if left:
        raise InvalidInput(
            f"budget {budget}: {budget.kept} experts do not make {groups} equal groups; give a multiple of {groups}",
            reason="BUDGET_INVALID",
        )
    kept = np.zeros(pattern.ranking.shape, np.bool_)
    for row, ranking, count in zip(kept, pattern.ranking, pattern.layer_experts, strict=True):
        place = np.argsort(ranking)[:count].reshape(groups, -1)  # of every expert in its layer's ranking
        row[:count] = (np.argsort(np.argsort(place)) < each).reshape(-1)
    return kept


def _check_counts(kept: Mask, active: int, target: Target) -> None:
    counts = kept.sum(axis=1).tolist()
    if min(counts) < active:
        raise InvalidInput(
            f"MoE layer {counts.index(min(counts))} would keep {min(counts)} experts, but every token needs {active}; "
            "give a larger budget",
            reason="BUDGET_INVALID",
        )
    if target == "transformers" and len(set(counts)) > 1:
        raise InvalidInput(
            f"the layers would keep {slots_text(counts)} experts, and transformers takes one number for all; give "
            "--allocation uniform, or --target premoe for a checkpoint that only `premoe pack` reads",
            reason="SPREAD_INVALID",
        )


def _check_groups(kept: Mask, manifest: Manifest, active: int) -> None:
    """Raise InvalidInput (GROUPS_UNEQUAL) where a cut router would find other groups than the whole one has."""
    router = manifest.router
    if router.groups == 1:
        return
    for layer, (row, count) in enumerate(zip(kept, manifest.layer_experts, strict=True)):
        each = set(row[:count].reshape(router.groups, -1).sum(axis=1).tolist())
        least = 2 if router.group_score == "top2" else 1
        if len(each) > 1:
            raise InvalidInput(
                f"MoE layer {layer} would keep {min(each)} to {max(each)} experts in its {router.groups} groups "
                "(n_group), and a cut router takes groups of one size; give --allocation equal-per-group",
                reason="GROUPS_UNEQUAL",
            )
        if min(each) < least or router.chosen_groups * min(each) < active:
            needed = max(least, -(-active // router.chosen_groups)) * router.groups
            raise InvalidInput(
                f"{min(each)} experts in each of {router.groups} groups (n_group), of which a token sees "
                f"{router.chosen_groups} (topk_group), are too few for {active}; give {active}/{needed} at least",
                reason="BUDGET_INVALID",
            )
