"""Masks as patterns: what others kept, ranked so that a budget of as many experts keeps just that."""

from __future__ import annotations

import numpy as np

from premoe_runtime.formats.arrays import F32, Mask
from premoe_runtime.formats.choices import Semantics
from premoe_runtime.formats.errors import Conflict, InvalidInput
from premoe_runtime.formats.ids import WeightsId
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.formats.pattern import Pattern
from premoe_runtime.formats.pattern_set import Member, PatternSet, SetDocument
from premoe_runtime.formats.recognition import task_scores
from premoe_runtime.formats.signature import SignatureSpec
from premoe_runtime.offline.masks.read import KeptExperts, Shape
from premoe_runtime.offline.patterns.build import (
    DEFAULT_QUANTILE,
    MAX_EXEMPLARS,
    MIN_PROMPTS,
    BuildOptions,
    split_signatures,
)
from premoe_runtime.offline.patterns.cutoffs import cutoff_of, scores_as_new
from premoe_runtime.offline.patterns.tellable import TaskVectors


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


def whole(manifest: Manifest) -> Pattern:
    """The pattern that keeps every expert; its task is called ``all``."""
    every = tuple(tuple(range(count)) for count in manifest.layer_experts)
    return imported(KeptExperts("json", every), manifest, "all", "selection")


def joined(found: PatternSet | None, pattern: Pattern, signatures: F32 | None = None) -> PatternSet:
    """The set, or a new one, with one more specialist, which only requests that name it run under.

    With ``signatures`` f32[N, D] of its prompts it is recognised, too: its cutoff comes about as in ``build_set``, in a
    set of centres as if no other task were near, and those of the other tasks stay as they are. It takes the place of
    one of its name that only had a name. Raises Conflict (TASK_EXISTS) for any other, InvalidInput for too few
    signatures or of other layers than the set's.
    """
    found = found or _empty(pattern)
    for one in found.members:
        if one.task == pattern.task and (one.kind == "generalist" or one.exemplars):
            raise Conflict(
                f"set {found.set_id[:16]} has a task {pattern.task} of its own; import the mask under another name",
                reason="TASK_EXISTS",
            )
    member = Member(pattern_id=pattern.pattern_id, task=pattern.task, kind="specialist")
    exemplars = found.exemplars
    if signatures is not None:
        member, own = _recognised(found, member, signatures)
        exemplars = np.concatenate([exemplars, own])
    members = (*(one for one in found.members if one.task != pattern.task), member)
    update = {"members": members, "decided": ()}
    return PatternSet.make(found.document.model_copy(update=update), exemplars, found.splits, found.space)


def _empty(pattern: Pattern) -> PatternSet:
    """What a first pattern joins: no set yet, for it has no member."""
    document = SetDocument(
        weights_id=pattern.weights_id,
        metric=pattern.metric,
        semantics=pattern.semantics,
        signature=SignatureSpec(dimension=pattern.num_experts),
        quantile=DEFAULT_QUANTILE,
        members=(Member(pattern_id=pattern.pattern_id, task=pattern.task, kind="specialist"),),
        on_unknown="reject",
        exemplars_digest="",
    )
    return PatternSet.make(document, np.zeros((0, pattern.num_experts), np.float32))


def _recognised(found: PatternSet, member: Member, signatures: F32) -> tuple[Member, F32]:
    """The member with a cutoff, and its exemplars, which follow those of the set."""
    document, vectors = found.document, found.embed(signatures)
    if document.signature.layers != (0,):
        raise InvalidInput(
            f"set {found.set_id[:16]} recognises tasks by layers {document.signature.layers}, and a mask's prompts are "
            "probed at the first; leave --prompts out",
            reason="SIGNATURE_INVALID",
        )
    if len(vectors) < MIN_PROMPTS:
        raise InvalidInput(
            f"task {member.task} has {len(vectors)} prompts; at least {MIN_PROMPTS} are needed, because half of them "
            "are held out to set its cutoff",
            reason="PROMPTS_TOO_FEW",
        )
    # As the others of the set have theirs, so that scores compare. Of prompts, a set of centres keeps none.
    centres = bool(found.recognisable) and all(one.exemplars == 1 for one in found.recognisable)
    stored = None if centres else np.array(split_signatures(len(vectors), MAX_EXEMPLARS)[0], np.int64)
    own = TaskVectors(vectors, stored)
    tightness = BuildOptions(quantile=document.quantile, margin=document.margin).tightness
    cutoff = cutoff_of(
        scores_as_new(vectors, stored, document.neighbours),
        np.zeros(0) if centres else task_scores(own.exemplars, found.exemplars, document.neighbours),
        tightness,
    )
    update = {
        "cutoff": cutoff,
        "first_exemplar": len(found.exemplars),
        "exemplars": len(own.exemplars),
        "held_out": own.held_out,
    }
    return member.model_copy(update=update), own.exemplars
