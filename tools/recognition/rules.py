"""Rules to compare: what a signature is made of, the space it is compared in, and how cutoffs are set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from premoe_runtime.formats.arrays import F32
from premoe_runtime.formats.pattern_set import Member, PatternSet, SetDocument
from premoe_runtime.formats.recognition import task_scores
from premoe_runtime.formats.signature import SignatureSpec, unit
from premoe_runtime.offline.patterns.build import MAX_EXEMPLARS, BuildOptions, placed, split_signatures
from premoe_runtime.offline.patterns.cutoffs import NEAREST_OTHERS
from premoe_runtime.offline.patterns.tellable import TaskVectors, space_for, tell
from recognition import signatures
from recognition.signatures import Seen, View

Blocks = tuple[tuple[float, View], ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """``conversation``: turns are looked at alone too, and tasks kept; else as they come after what is before them.
    ``as_before``: no space, and cutoffs from prompts in the exemplars' own wordings, half of which are held out.
    ``blocks``: views side by side instead of one, each of unit length in a space of its own; a score is the mean of
    theirs by weight, and weights add up to 1.
    """

    view: View = signatures.first_layer
    blocks: Blocks = ()
    conversation: bool = True
    as_before: bool = False
    options: BuildOptions = field(default_factory=BuildOptions)


RULES: dict[str, Rule] = {
    "product": Rule(),
    "nearest exemplars": Rule(options=BuildOptions(exemplars=MAX_EXEMPLARS)),
    "as before": Rule(
        conversation=False,
        as_before=True,
        options=BuildOptions(quantile=0.985, wide_quantile=0.9, margin=0.25, exemplars=MAX_EXEMPLARS),
    ),
    "looser": Rule(options=BuildOptions(margin=0.6)),
    "tighter": Rule(options=BuildOptions(quantile=0.97, wide_quantile=0.85, margin=0.25)),
    "turns in context only": Rule(conversation=False),
    "two layers": Rule(signatures.two_layers),
    "all layers": Rule(signatures.all_layers),
    "first router's logits": Rule(signatures.first_logits),
    "first router's input": Rule(signatures.hidden_state),
    "router and its input": Rule(signatures.with_hidden_state),
    "bag of tokens": Rule(signatures.bag_of_tokens),
    "router 0.75, tokens 0.25": Rule(
        blocks=((0.75, signatures.first_layer), (0.25, signatures.bag_of_tokens)), options=BuildOptions(margin=0.5)
    ),
    "first layer 0.75, second 0.25": Rule(blocks=((0.75, signatures.first_layer), (0.25, signatures.second_layer))),
}


@dataclass(frozen=True, slots=True)
class Built:
    """A set, and the view that its signatures are made by."""

    pattern_set: PatternSet
    view: View


def built(tasks: Mapping[str, Sequence[Seen]], rule: Rule) -> Built:
    """The set as ``build_set`` makes it, without patterns."""
    options = rule.options
    view = _side_by_side(tasks, rule.blocks) if rule.blocks else rule.view
    prompts = [np.stack([view(seen) for seen in task]) for task in tasks.values()]
    if rule.blocks:
        space, found = None, [TaskVectors(one) for one in prompts]
        cutoffs: Sequence[float] = tell(found, options.neighbours, options.tightness).cutoffs
    elif rule.as_before:
        space = None
        found = [TaskVectors(one, np.array(split_signatures(len(one), MAX_EXEMPLARS)[0])) for one in prompts]
        cutoffs = _cutoffs_before(found, options)
    else:
        space, found = placed(prompts, options.exemplars)
        cutoffs = tell(found, options.neighbours, options.tightness).cutoffs
    firsts = np.cumsum([0, *(len(each.exemplars) for each in found)])
    members = tuple(
        Member(
            pattern_id=f"{number:064x}", task=task, kind="specialist", cutoff=cutoff,
            first_exemplar=int(firsts[number]), exemplars=len(each.exemplars),
        )
        for number, (task, each, cutoff) in enumerate(zip(tasks, found, cutoffs, strict=True))
    )  # fmt: skip
    document = SetDocument(
        weights_id="0" * 64,
        metric="peu",
        semantics="selection",
        signature=SignatureSpec(dimension=found[0].vectors.shape[1]),
        neighbours=options.neighbours,
        quantile=options.quantile,
        members=members,
        on_unknown="full",
        exemplars_digest="",
    )
    return Built(PatternSet.make(document, np.concatenate([each.exemplars for each in found]), None, space), view)


def _side_by_side(tasks: Mapping[str, Sequence[Seen]], blocks: Blocks) -> View:
    spaces = [space_for([np.stack([view(seen) for seen in task]) for task in tasks.values()]) for _, view in blocks]

    def view(seen: Seen) -> F32:
        parts = []
        for (weight, each), space in zip(blocks, spaces, strict=True):
            part = each(seen)
            parts.append(weight**0.5 * (part if space is None else space.of(part)))
        return unit(np.concatenate(parts))

    return view


def _cutoffs_before(tasks: Sequence[TaskVectors], options: BuildOptions) -> list[float]:
    tightness, cutoffs = options.tightness, []
    for one in tasks:
        held = np.delete(one.vectors, () if one.stored is None else one.stored, axis=0)
        own, *others = (
            task_scores(one.exemplars, vectors, options.neighbours)
            for vectors in (held, *(other.vectors for other in tasks if other is not one))
        )
        scores = np.concatenate(others)
        inside, wide = (1 - np.quantile(own, 1 - share, method="lower") for share in (tightness.quantile, 0.9))
        outside = 1 - np.quantile(scores, NEAREST_OTHERS)
        narrow = inside ** (1 - tightness.margin) * outside**tightness.margin
        cutoffs.append(1 - float(narrow if outside > inside else min(inside, wide)))
    return cutoffs
