from collections.abc import Sequence

import numpy as np
import pytest
from support.profiles import EXPERTS, LAYERS, TOP_K, WEIGHTS, profile

from premoe_runtime.formats import arrays
from premoe_runtime.formats.allocation import Splits, one_split
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.errors import CorruptData, InvalidInput, NotFound
from premoe_runtime.formats.pattern_set import PatternSet, set_paths
from premoe_runtime.offline.patterns import library
from premoe_runtime.offline.patterns.build import (
    BuildOptions,
    BuiltSet,
    build_set,
    split_signatures,
)
from premoe_runtime.storage import open_store

TASKS = ("add", "rev", "json")


def built(prompts: int = 160, options: BuildOptions | None = None, tasks: Sequence[str] = TASKS) -> BuiltSet:
    return build_set([profile(task, prompts=prompts) for task in tasks], options)


def test_a_set_has_a_specialist_a_task_and_a_generalist() -> None:
    result = built()
    found = result.pattern_set
    assert [member.task for member in found.specialists] == sorted(TASKS)
    assert found.generalist_id == result.patterns[-1].pattern_id
    assert [pattern.pattern_id for pattern in result.patterns] == [member.pattern_id for member in found.members]
    assert all(member.exemplars == 1 and member.held_out == 160 for member in found.specialists)
    assert len(found.exemplars) == len(TASKS)
    assert result.notes == ()
    assert found.weights_id == WEIGHTS


def test_exemplars_and_held_out_prompts_are_disjoint_and_spread() -> None:
    for count in (20, 33, 128, 500):
        chosen, rest = split_signatures(count, 64)
        assert sorted([*chosen, *rest]) == list(range(count))
        assert len(chosen) == min(64, count // 2)
        gaps = np.diff(chosen)
        assert gaps.max() - gaps.min() <= 1


def test_profiles_of_one_task_are_merged_and_order_does_not_matter() -> None:
    parts = [profile("add", prompts=30), profile("add", seed=1, prompts=30), profile("rev", prompts=30)]
    one, other = build_set(parts), build_set(parts[::-1])
    assert one.pattern_set.set_id == other.pattern_set.set_id
    assert [member.task for member in one.pattern_set.specialists] == ["add", "rev"]
    assert one.pattern_set.member("add").held_out == 60


def test_files_round_trip_and_the_id_is_their_content() -> None:
    found = built().pattern_set
    document, exemplars = found.to_files()
    again = PatternSet.from_files(document, exemplars)
    assert again.to_files() == (document, exemplars)
    assert again.set_id == found.set_id != built(options=BuildOptions(quantile=0.9)).pattern_set.set_id
    files = dict(zip(set_paths(found.set_id), (document, exemplars), strict=True))
    assert PatternSet.load(files.__getitem__, found.set_id).set_id == found.set_id


def test_damaged_files_are_refused() -> None:
    found = built().pattern_set
    document, exemplars = found.to_files()
    with pytest.raises(CorruptData, match="digest in the document"):
        PatternSet.from_files(document, exemplars[:-1] + b"\1")
    with pytest.raises(CorruptData, match="does not match its id"):
        PatternSet.load(lambda path: document, "0" * 64)
    with pytest.raises(CorruptData, match="pattern set: "):
        PatternSet.from_files(b"{}", exemplars)
    with pytest.raises(CorruptData, match="pattern set: "):
        PatternSet.from_files(b"not json", exemplars)
    for old, new, what in (
        (b'"first_exemplar": 0', b'"first_exemplar": 9000', "past the end"),
        (b'"task": "rev"', b'"task": "add"', "share a pattern id or a task"),
        (f'"generalist_id": "{found.generalist_id}"'.encode(), b'"generalist_id": "x"', "names no generalist"),
        (b'"dimension": 8', b'"dimension": 9', "expected"),
    ):
        assert old in document.replace(b'":', b'": ').replace(b'":  ', b'": ')
        changed = document.replace(b'":', b'": ').replace(b'":  ', b'": ').replace(old, new)
        with pytest.raises(CorruptData, match=what):
            PatternSet.from_files(changed, exemplars)


def test_signatures_that_do_not_fit_are_refused() -> None:
    found = built().pattern_set
    assert np.linalg.norm(found.embed(np.full(EXPERTS, 0.1, np.float32))) == pytest.approx(1)
    with pytest.raises(InvalidInput, match="signature has 3 values"):
        found.embed(np.zeros(3, np.float32))
    with pytest.raises(InvalidInput, match="not finite"):
        found.embed(np.full(EXPERTS, np.nan, np.float32))


def test_members_are_found_by_task_or_id() -> None:
    found = built().pattern_set
    assert found.member("rev") == found.member(found.member("rev").pattern_id)
    with pytest.raises(NotFound, match="no task or pattern 'poem'") as caught:
        found.member("poem")
    assert "add, json, rev" in str(caught.value)


def test_the_generalists_retention_is_recorded_by_budget() -> None:
    found = built(options=BuildOptions(budgets=(Budget(2, 4), Budget(1, 8)))).pattern_set
    half = found.retention(Budget(2, 4))
    everything = found.retention(Budget(1, 8))
    assert half is not None
    assert everything is not None
    assert 0 < half.mass < everything.mass == pytest.approx(1)
    assert found.retention(Budget(2, 5)) is None


def test_a_shared_set_freezes_one_split_for_every_budget() -> None:
    result = built(options=BuildOptions(metric="seer", allocation="shared"))
    found = PatternSet.from_files(*result.pattern_set.to_files())
    assert found.set_id == result.pattern_set.set_id
    assert all(pattern.allocation == "shared" for pattern in result.patterns)
    scores = [pattern.scores for pattern in result.patterns[:-1]]
    for kept in range(TOP_K, EXPERTS + 1):
        assert found.layer_slots(kept, 0) == tuple(one_split(scores, kept * LAYERS, TOP_K))
        slots = found.layer_slots(kept, 1)
        assert slots is not None
        assert sum(slots) == min(kept + 1, EXPERTS) * LAYERS
        for pattern in result.patterns:
            mask = pattern.kept(Budget(TOP_K, kept), slots)
            assert mask.sum() == kept * LAYERS
            assert (mask.sum(axis=1) <= slots).all()
    with pytest.raises(InvalidInput, match="the model has 8"):
        found.layer_slots(9, 0)


def test_sets_without_splits_are_uniform_and_read_as_before() -> None:
    result = built()
    found = PatternSet.from_files(*result.pattern_set.to_files())
    assert found.layer_slots(4, 2) is None
    assert {pattern.allocation for pattern in result.patterns} == {"uniform"}
    assert arrays.decode(result.pattern_set.to_files()[1], where="set")[0].keys() == {"exemplars", "centre", "axes"}


@pytest.mark.parametrize("fault", ["sum", "shrinks", "wanted", "shape"])
def test_splits_that_do_not_add_up_are_damage(fault: str) -> None:
    made = built(options=BuildOptions(allocation="shared")).pattern_set
    assert made.splits is not None
    common, wanted = made.splits.common.copy(), made.splits.wanted.copy()
    if fault == "sum":
        common[3, 0] += 1
    elif fault == "shrinks":
        common[3] = [EXPERTS, 0]
    elif fault == "wanted":
        wanted[2, 1] = EXPERTS + 1
    else:
        wanted = wanted[:-1]
    with pytest.raises(CorruptData, match="splits of the layers do not add up"):
        PatternSet.make(made.document, made.exemplars, Splits(common, wanted))


def test_few_prompts_are_said_to_be_few() -> None:
    with pytest.raises(InvalidInput, match="task add has 19 prompts; at least 20 are needed"):
        built(prompts=19, tasks=("add",))
    notes = built(prompts=30, tasks=("add",)).notes
    assert len(notes) == 1
    assert "30 prompts are too few" in notes[0]


def test_bad_options_and_mixed_profiles_are_refused() -> None:
    with pytest.raises(InvalidInput, match="no profiles given"):
        build_set([])
    with pytest.raises(InvalidInput, match="belongs to weights"):
        build_set([profile("add"), profile("rev", weights_id="v" * 64)])
    with pytest.raises(InvalidInput, match="quantile"):
        built(options=BuildOptions(quantile=1.0))
    with pytest.raises(InvalidInput, match="margin"):
        built(options=BuildOptions(margin=1.0))
    with pytest.raises(InvalidInput, match="at least 1"):
        built(options=BuildOptions(exemplars=0))
    with pytest.raises(InvalidInput, match="may not be named"):
        build_set([profile("generalist")])
    with pytest.raises(InvalidInput, match="the model's top-k is 2"):
        built(options=BuildOptions(budgets=(Budget(3, 4),)))
    with pytest.raises(InvalidInput, match="the model has 8"):
        built(options=BuildOptions(budgets=(Budget(2, 9),)))


def test_publishing_writes_everything_and_the_live_pointer_last() -> None:
    store = open_store("memory://publish-everything")
    result = built()
    set_id = library.publish(store, result)
    assert library.live_set_id(store, WEIGHTS) is None
    with pytest.raises(NotFound, match="no live pattern set"):
        library.load_set(store, WEIGHTS)
    library.publish(store, result, live=True)
    assert library.live_set_id(store, WEIGHTS) == set_id
    assert library.load_set(store, WEIGHTS).set_id == set_id
    assert library.load_set(store, WEIGHTS, set_id[:10]).set_id == set_id
    assert library.find_pattern(store, "rev").task == "rev"
    assert library.find_pattern(store, result.patterns[0].pattern_id[:12]).task == "add"
    assert library.ids(store, "patterns") == sorted(pattern.pattern_id for pattern in result.patterns)


def test_a_set_or_profile_of_other_weights_is_refused() -> None:
    store = open_store("memory://other-weights")
    set_id = library.publish(store, built(), live=True)
    with pytest.raises(InvalidInput, match="belongs to weights"):
        library.load_set(store, "v" * 64, set_id)
    name = library.put_profile(store, profile("add"))
    with pytest.raises(InvalidInput, match="profile this model"):
        library.profiles_of(store, "v" * 64, [name[:8]])
    assert library.profiles_of(store, "v" * 64) == []
    assert [found.task for found in library.profiles_of(store, WEIGHTS)] == ["add"]


def test_unknown_and_ambiguous_names() -> None:
    store = open_store("memory://names")
    with pytest.raises(NotFound, match="no profile 'abc'"):
        library.resolve(store, "profiles", "abc")
    for name in ("aa1", "aa2"):
        store.put(f"profiles/{name}.safetensors", b"")
    with pytest.raises(InvalidInput, match="ambiguous"):
        library.resolve(store, "profiles", "aa")
    with pytest.raises(NotFound):
        library.resolve(store, "profiles", "")


def test_the_store_of_a_model_is_where_its_pack_lies() -> None:
    assert library.store_of("memory://x/models/abc").url == open_store("memory://x").url
    assert library.store_of("memory://x").url == open_store("memory://x").url
    assert library.store_of("memory://x", "memory://y").url == open_store("memory://y").url
