"""Masks of other tools: their forms, what is wrong with them, and the patterns they become."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.exports import packed
from support.profiles import profile

from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.errors import Conflict, InvalidInput
from premoe_runtime.formats.pattern import Pattern
from premoe_runtime.formats.pattern_set import PatternSet
from premoe_runtime.formats.recognition import recognise
from premoe_runtime.formats.signature import unit
from premoe_runtime.offline.masks.pattern import imported, joined, kept, shape_of, usual_semantics
from premoe_runtime.offline.masks.read import KeptExperts, MaskFormat, Shape, read_mask
from premoe_runtime.offline.patterns.build import build_set

SHAPE = Shape(blocks=(3, 4), experts=(4, 4))
KEPT = ((0, 2), (1, 3))
EASY_EP = [[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]]


def read(content: object, form: MaskFormat | None = None, shape: Shape = SHAPE) -> KeptExperts:
    data = content if isinstance(content, str) else json.dumps(content)
    return read_mask(data.encode(), shape, "mask.json", form)


@pytest.mark.parametrize(
    ("form", "content"),
    [
        ("easy-ep", EASY_EP),
        ("vllm-ascend", '{"3": [0, 2]}\n\n{"4": [1, 3]}\n'),
        ("vllm-ascend", '{"4": [1, 3]}\n{"3": [0, 2]}'),
        ("reap", {"kept_experts": {"3": [2, 0], "4": [1, 3]}, "criterion": "reap"}),
        ("reap", {"retained_experts": {"model.layers.3.mlp": [0, 2], "model.layers.4.mlp": [3, 1]}}),
        ("reap", {"pruned_experts": {"3": [1, 3], "4": [0, 2]}}),
        ("reap", {"version": 1, "model": "m", "pruned_experts": [[3, 1], [3, 3], [4, 0], [4, 2]]}),
        ("reap", {"declared_k": 2, "layers": {"3": {"kept_experts": [0, 2]}, "4": {"kept_experts": [1, 3]}}}),
        ("json", {"task": "poems", "layers": [[0, 2], [1, 3]]}),
    ],
)
def test_every_form_is_read_and_recognised(form: MaskFormat, content: object) -> None:
    assert read(content) == read(content, form) == KeptExperts(form, KEPT)


def test_what_reap_does_not_prune_is_kept() -> None:
    assert read({"pruned_experts": [[4, 0]]}).layers == ((0, 1, 2, 3), (1, 2, 3))


def test_ordered_lists_keep_their_order_and_their_best() -> None:
    lists = read('{"3": [2, 0, 1, 3]}\n{"4": [3, 1, 0, 2]}')
    assert lists.layers == ((2, 0, 1, 3), (3, 1, 0, 2))
    assert lists.best(2, "mask.json").layers == ((2, 0), (3, 1))
    with pytest.raises(InvalidInput, match="it lists 4 in some layer"):
        lists.best(5, "mask.json")
    with pytest.raises(InvalidInput, match="does not say which are the best"):
        read(EASY_EP).best(1, "mask.json")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "neither JSON nor JSON lines"),
        ("", "neither JSON nor JSON lines"),
        ("[" * 100_000, "neither JSON nor JSON lines"),
        ("[[1, NaN, 0, 0], [1, 1, 1, 1]]", "NaN is no number of an expert"),
        ("[[1, 1e999, 0, 0], [1, 1, 1, 1]]", "row 0, expert 1: Infinity is neither 0 nor 1"),
        ('{"layers": [[1], [2]], "layers": [[1], [2]]}', "layers occurs twice"),
        ([*EASY_EP, EASY_EP[0]], "it has 3 layers, the model has 2 MoE layers"),
        (EASY_EP[:1], "it has 1 layers, the model has 2 MoE layers"),
        ([[1, 0, 1, 0, 1], [0, 1, 0, 1]], "row 0 has 5 entries, the layer has 4 experts"),
        ([[1, 0, 0.5, 0], [0, 1, 0, 1]], "row 0, expert 2: 0.5 is neither 0 nor 1"),
        ([[1, 0, True, 0], [0, 1, 0, 1]], "row 0, expert 2: true is neither 0 nor 1"),
        ([[0, 0, 0, 0], [0, 1, 0, 1]], "MoE layer 0 .block 3. keeps no expert"),
        ([1, 2], "expected a list in row 0"),
        ('{"3": [0, 2]}\n{"3": [1]}', "block 3 occurs twice"),
        ('{"3": [0, 2]}\n{"5": [1]}', "block 5 is no MoE block of the model; those are 3 to 4"),
        ('{"3": [0, 2]}', "block 4 is missing .1 of 2 are."),
        ('{"3": [0, 4]}\n{"4": [1]}', "MoE layer 0 .block 3. lists expert 4, but has 0 to 3"),
        ('{"3": [0, -1]}\n{"4": [1]}', "lists expert -1"),
        ('{"3": [0, 0]}\n{"4": [1]}', "lists expert 0 twice"),
        ('{"3": [0, true]}\n{"4": [1]}', "true is no number of an expert"),
        ('{"3": [0, "1"]}\n{"4": [1]}', '"1" is no number of an expert'),
        ('{"3": [0], "4": [1]}\n{"4": [1]}', "line 1 is no object with one block"),
        ('{"layer three": [0]}\n{"4": [1]}', "'layer three' is no number of a block"),
        ({"kept_experts": {"3": [0], "4": [1]}, "pruned_experts": {"3": [1], "4": [0]}}, "says 2 of them"),
        ({"kept_experts": [[3, 0]]}, "kept_experts is no object of lists by block"),
        ({"pruned_experts": [[3, 0], 4]}, "entry 1 is no pair of a block and an expert"),
        ({"pruned_experts": [[3, 0], [3, 1], [3, 2], [3, 3]]}, "keeps no expert"),
        ({"layers": [[0], [9]]}, "lists expert 9, but has 0 to 3"),
        ({"layers": "all"}, "expected an object with"),
        ({"experts": 4}, "none of the known forms"),
        (7, "none of the known forms"),
    ],
)
def test_bad_files_are_one_clear_line(content: object, why: str) -> None:
    with pytest.raises(InvalidInput, match=why) as refused:
        read(content)
    assert refused.value.reason == "MASK_INVALID"
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith("mask.json")


def test_a_form_that_was_named_is_not_guessed() -> None:
    with pytest.raises(InvalidInput, match="expected a list of rows"):
        read({"layers": [[0], [1]]}, "easy-ep")
    with pytest.raises(InvalidInput, match="it is no JSON object"):
        read(EASY_EP, "reap")


@pytest.mark.parametrize("counts", [(8, 8), (5, 11)])
def test_a_pattern_keeps_the_mask_at_its_budget(tmp_path: Path, counts: tuple[int, int]) -> None:
    manifest = packed(tmp_path).manifest()
    source = np.random.default_rng(1)
    layers = [source.permutation(16)[:count].tolist() for count in counts]
    mask = read_mask(json.dumps({"layers": layers}).encode(), shape_of(manifest), "mask.json")
    pattern = imported(mask, manifest, "poems", usual_semantics(mask))
    again = Pattern.from_bytes(pattern.to_bytes())
    assert again.metric == "imported"
    assert np.array_equal(again.kept(Budget(4, 8)), kept(mask, manifest))
    assert again.ranking[0, : counts[0]].tolist() == layers[0]
    assert again.allocation == ("uniform" if len(set(counts)) == 1 else "shared")
    assert usual_semantics(KeptExperts("reap", mask.layers)) == "slice"


def named(task: str = "poems") -> Pattern:
    whole = profile("add")
    scores = np.zeros((2, 8))
    return Pattern.from_scores(
        scores, scores, scores.astype(np.int64), weights_id=whole.weights_id, task=task, kind="specialist",
        metric="imported", profiles=(),
    )  # fmt: skip


def test_a_named_specialist_joins_a_set_and_is_never_recognised() -> None:
    before = build_set([profile("add"), profile("sub")]).pattern_set
    more = joined(before, named())
    again = PatternSet.from_files(*more.to_files())
    member = again.member("poems")
    assert (member.cutoff, member.exemplars, member.pattern_id) == (None, 0, named().pattern_id)
    assert [one.task for one in again.recognisable] == ["add", "sub"]
    for one in before.specialists:
        for row in before.exemplars_of(one):
            assert recognise(again, row) == recognise(before, row)
    assert joined(more, named()).set_id == more.set_id
    with pytest.raises(Conflict, match="has a task add of its own"):
        joined(before, named("add"))
    with pytest.raises(Conflict, match="has a task generalist of its own"):
        joined(before, named("generalist"))


def test_with_prompts_it_is_recognised() -> None:
    before = build_set([profile("add"), profile("sub")]).pattern_set
    mine = profile("poems", prompts=40).signatures
    made = PatternSet.from_files(*joined(before, named(), mine).to_files())
    member = made.member("poems")
    # A centre, as the others have.
    assert (member.first_exemplar, member.exemplars, member.held_out) == (len(before.exemplars), 1, 40)
    assert len(made.exemplars) == len(before.exemplars) + 1
    recognised = [recognise(made, row).task for row in mine if recognise(made, row).recognised]
    assert recognised.count("poems") >= 36
    for one in before.specialists:
        assert made.member(one.task) == one
    with pytest.raises(InvalidInput, match="at least 20 are needed"):
        joined(before, named(), mine[:19])
    with pytest.raises(InvalidInput, match="the set's have 8"):
        joined(before, named(), mine[:, :7])
    with pytest.raises(Conflict, match="has a task poems of its own"):
        joined(made, named())
    alone = joined(None, named(), mine)
    assert (alone.member("poems").exemplars, alone.member("poems").held_out) == (20, 20)
    assert recognise(alone, mine[0]).task == "poems"


def test_without_a_set_it_makes_one_that_recognises_nothing() -> None:
    made = PatternSet.from_files(*joined(None, named()).to_files())
    decision = recognise(made, unit(np.ones((1, 8), np.float32))[0])
    assert (decision.kind, decision.task, decision.reason) == (
        "reject", "", "the set has no tasks: unknown, so rejected",
    )  # fmt: skip
