"""Masks as patterns: what others kept, ranked so that a budget of as many experts keeps just that."""

from __future__ import annotations

import numpy as np

from premoe_runtime.formats.arrays import Mask
from premoe_runtime.formats.choices import Semantics
from premoe_runtime.formats.errors import Conflict
from premoe_runtime.formats.ids import WeightsId
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.formats.pattern import Pattern
from premoe_runtime.formats.pattern_set import Member, PatternSet, SetDocument
from premoe_runtime.formats.signature import SignatureSpec
from premoe_runtime.offline.masks.read import KeptExperts, Shape
from premoe_runtime.offline.patterns.build import DEFAULT_QUANTILE


def shape_of(manifest: Manifest) -> Shape:
    """What a mask of this model must fit."""
    return Shape(tuple(layer.block for layer in manifest.layers), manifest.layer_experts)


def usual_semantics(mask: KeptExperts) -> Semantics:
    """What absent experts do to the weights where the file comes from: REAP and vLLM-Ascend cut the router's rows."""
    return "slice" if mask.format in ("reap", "vllm-ascend") else "selection"


def kept(mask: KeptExperts, manifest: Manifest) -> Mask:
    """bool[L, E]."""
    found = np.zeros(manifest.exists.shape, np.bool_)
    for row, ids in zip(found, mask.layers, strict=True):
        row[list(ids)] = True
    return found


def imported(mask: KeptExperts, manifest: Manifest, task: str, semantics: Semantics) -> Pattern:
    """A pattern that ranks what the mask keeps before all else, in its order if it has one.

    Its budgets are shared over the layers where the mask keeps differently many.
    """
    scores = np.where(manifest.exists, 0.0, -np.inf)
    for row, ids in zip(scores, mask.layers, strict=True):
        row[list(ids)] = 1.0 - np.arange(len(ids)) / (2 * len(row)) if mask.ordered else 1.0
    return Pattern.from_scores(
        scores,
        np.zeros(scores.shape),
        np.zeros(scores.shape, np.int64),
        weights_id=WeightsId(manifest.weights_id),
        task=task,
        kind="specialist",
        metric="imported",
        profiles=(),
        semantics=semantics,
        allocation="uniform" if len(set(mask.counts)) == 1 else "shared",
    )


def with_named(found: PatternSet | None, pattern: Pattern) -> PatternSet:
    """The set with one more specialist, which no prompt is recognised as: requests name it.

    It takes the place of one of its name that was such a one, too. Raises Conflict (TASK_EXISTS) for any other.
    """
    member = Member(pattern_id=pattern.pattern_id, task=pattern.task, kind="specialist")
    if found is None:
        document = SetDocument(
            weights_id=pattern.weights_id,
            metric=pattern.metric,
            semantics=pattern.semantics,
            signature=SignatureSpec(dimension=pattern.num_experts),
            quantile=DEFAULT_QUANTILE,
            members=(member,),
            on_unknown="reject",
            exemplars_digest="",
        )
        return PatternSet.make(document, np.zeros((0, pattern.num_experts), np.float32))
    for one in found.members:
        if one.task == pattern.task and (one.kind == "generalist" or one.exemplars):
            raise Conflict(
                f"set {found.set_id[:16]} has a task {pattern.task} of its own; import the mask under another name",
                reason="TASK_EXISTS",
            )
    members = (*(one for one in found.members if one.task != pattern.task), member)
    return PatternSet.make(found.document.model_copy(update={"members": members}), found.exemplars, found.splits)
