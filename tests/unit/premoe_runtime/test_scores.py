"""Every score of the registry against a plain reading of its formula, and what holds for all of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.plain_scores import PLAIN, Layer, observe
from support.processor import INTEL
from support.profiles import profile as router_profile
from support.profiles import write_examples
from support.sources import MemorySource
from support.tiny import tiny_checkpoint, tiny_model

from premoe_runtime.engines.hf.model import SlotModel
from premoe_runtime.families import stock
from premoe_runtime.families.registry import FAMILIES
from premoe_runtime.formats.errors import CorruptData, InvalidInput
from premoe_runtime.offline.calibration import Example, Message, read_calibration
from premoe_runtime.offline.patterns.derive import generalist, specialist
from premoe_runtime.offline.profile.accumulator import ProfileAccumulator
from premoe_runtime.offline.profile.measure import load_full_model, make_full, measure_profile
from premoe_runtime.offline.profile.record import Profile, merge
from premoe_runtime.offline.profile.samples import encode_examples
from premoe_runtime.offline.profile.scores import ROUTER_ONLY, SCORES, find, refusal, scores, sums_of
from premoe_runtime.offline.profile.state import ProfileState

COUNT = 6
ALL = tuple(name for name in SCORES if name != "random")
FAMILY_NAMES = ("qwen3_moe", "olmoe", "deepseek_v3")


@pytest.fixture(scope="module", params=FAMILY_NAMES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp(family), family)


@pytest.fixture(scope="module")
def model(folder: Path) -> SlotModel:
    return load_full_model(MemorySource(folder))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> SlotModel:
    return load_full_model(MemorySource(tiny_checkpoint(tmp_path_factory.mktemp("qwen"))))


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    return read_calibration(write_examples(tmp_path_factory.mktemp("data") / "capitals.jsonl", "capitals", COUNT))


@pytest.fixture(scope="module")
def whole(model: SlotModel, examples: list[Example]) -> Profile:
    return measure_profile(model, examples, task="capitals", scores=ALL, max_tokens=80)


@pytest.fixture(scope="module")
def plain(folder: Path, family: str, model: SlotModel, examples: list[Example]) -> list[Layer]:
    samples = encode_examples(model, examples, answers="given", where="test")
    return observe(folder, family, [(sample.token_ids, len(sample.answer)) for sample in samples])


def same(one: ProfileState, other: ProfileState) -> bool:
    return one.sums.keys() == other.sums.keys() and all(np.array_equal(one[s], other[s]) for s in one.sums)


def test_every_score_has_a_plain_reading() -> None:
    assert set(ALL) <= PLAIN.keys()


@pytest.mark.parametrize("name", PLAIN)
def test_a_score_is_what_its_formula_says_on_the_stock_class(name: str, whole: Profile, plain: list[Layer]) -> None:
    expected = np.stack([PLAIN[name](layer) for layer in plain])
    found = scores(whole.state, name)
    assert np.ptp(expected, axis=1).max() > 0  # it ranks
    scale = np.abs(expected).max()
    # The spread of a few tokens that are nearly one is a difference of nearly equal sums.
    relative = 2e-3 if INTEL or name not in ("eae", "ege") else 2e-2
    assert np.allclose(found, expected, rtol=relative, atol=1e-4 * scale), name


def test_sums_are_the_same_bits_whatever_else_is_measured(qwen: SlotModel, examples: list[Example]) -> None:
    together = measure_profile(qwen, examples, task="capitals", scores=ALL)
    for name in ALL:
        alone = measure_profile(qwen, examples, task="capitals", scores=[name])
        assert set(alone.state.sums) == set(sums_of([name]))
        for one, table in alone.state.sums.items():
            assert np.array_equal(table, together.state[one]), (name, one.name)
        assert np.array_equal(alone.signatures, together.signatures)


def test_halves_merge_into_one_pass_and_come_back_from_their_files(qwen: SlotModel, examples: list[Example]) -> None:
    one = measure_profile(qwen, examples, task="capitals", scores=ALL, max_tokens=1)  # a prompt at a time
    halves = [
        measure_profile(qwen, part, task="capitals", scores=ALL, max_tokens=1) for part in (examples[:2], examples[2:])
    ]
    for order in (halves, halves[::-1]):
        merged = merge([Profile.from_bytes(half.to_bytes()) for half in order])
        assert same(merged.state, one.state)
    for name in SCORES:
        assert np.array_equal(specialist(merged, name).ranking, specialist(one, name).ranking)


def test_profiles_of_other_scores_merge_into_what_both_can_rank(qwen: SlotModel, examples: list[Example]) -> None:
    reap, ean = (measure_profile(qwen, examples, task="capitals", scores=["seer", name]) for name in ("reap", "ean"))
    both = merge([reap, ean])
    assert set(both.state.sums) == set(sums_of(["seer"]))
    with pytest.raises(
        InvalidInput, match="not measured for the score 'reap': profile the task again with --score reap"
    ):
        specialist(both, "reap")


def test_nothing_is_seen_of_experts_or_gradients_that_no_score_needs(
    qwen: SlotModel, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise AssertionError("this was not asked for")

    monkeypatch.setattr("premoe_runtime.offline.profile.watch.one_by_one", fail)
    monkeypatch.setattr("premoe_runtime.offline.profile.gradient.one_by_one", fail)
    measure_profile(qwen, examples, task="capitals", scores=[*ROUTER_ONLY, "peu@0.5", "ecc", "evtc"])
    with pytest.raises(AssertionError, match="not asked for"):
        measure_profile(qwen, examples, task="capitals", scores=["reap"])


def test_easy_ep_is_refused_where_a_block_reshapes_what_experts_give(tmp_path: Path, examples: list[Example]) -> None:
    model = load_full_model(MemorySource(tiny_checkpoint(tmp_path, "flex_olmo")))
    with pytest.raises(InvalidInput, match="score easy-ep cannot be taken of flex_olmo: a block normalises") as caught:
        measure_profile(model, examples, task="capitals", scores=["seer", "easy-ep"])
    assert caught.value.reason == "SCORE_UNSUPPORTED"
    measure_profile(model, examples, task="capitals", scores=["seer", "reap"])
    assert [name for name, spec in FAMILIES.items() if not refusal(SCORES["reap"], spec)] == list(FAMILIES)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_says_whether_a_block_adds_what_its_experts_give_as_it_is(name: str) -> None:
    model, spec = tiny_model(name), FAMILIES[name]
    layers: Any = model.get_decoder().layers
    block = next(at for at in range(len(layers)) if stock.sparse_part(model, spec, at) is not None)
    sparse: Any = stock.sparse_part(model, spec, block)
    experts = sparse.get_submodule(spec.experts_module)
    given: list[torch.Tensor] = []
    layers[block].register_forward_hook(lambda _m, _i, out: given.append(out[0] if isinstance(out, tuple) else out))
    ids = torch.tensor([[40, 41, 42, 43]])
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
        added = torch.linspace(-1, 1, model.config.hidden_size)
        experts.register_forward_hook(lambda _m, _i, out: out + added)
        model(input_ids=ids, use_cache=False)
    as_it_is = torch.allclose(given[1] - given[0], added.expand(given[0].shape), atol=1e-3)
    assert as_it_is == (not spec.reshapes_output)


def test_names_are_found_by_alias_and_threshold() -> None:
    assert find("seer-hard").name == find("euf").name == "counts"
    assert find("gate-norm").name == "norm"
    assert find("peu-exp@0.250").name == "peu-exp@0.25"
    assert [one.name for one in find("peu@0").sums] == ["utility"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("impcat", "score 'impcat' is not known; did you mean impact"),
        ("", "score '' is not known; `premoe scores`"),
        ("reap@0.5", "peu, peu-sigmoid and peu-exp take a threshold of 0 to 1"),
        ("peu@2", "score 'peu@2' is not known: peu,"),
        ("peu@nan", "score 'peu@nan' is not known"),
        ("peu@", "score 'peu@' is not known"),
    ],
)
def test_unknown_scores_are_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        find(name)
    assert "\n" not in str(caught.value)


def test_equal_scores_are_ordered_by_soft_then_count_then_id() -> None:
    made = router_profile()
    flat = replace(
        made,
        state=ProfileState({s: np.zeros_like(t) if s.name == "top_logit" else t for s, t in made.state.sums.items()}),
    )
    assert np.array_equal(specialist(flat, "tcess").ranking, specialist(made, "seer").ranking)


def test_a_generalist_of_any_score_ranks(qwen: SlotModel, examples: list[Example]) -> None:
    tasks = [measure_profile(qwen, examples[at : at + 3], task=f"t{at}", scores=ALL) for at in (0, 3)]
    for name in SCORES:
        pool = generalist(tasks, name)
        assert np.isfinite(pool.scores).all(), name


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_name_layer_and_prompt(tmp_path: Path, value: float) -> None:
    model = load_full_model(MemorySource(tiny_checkpoint(tmp_path)))
    (odd,) = model.tokenizer.encode("#")
    model.model.get_input_embeddings().weight[odd] = value
    data = [Example((Message("user", text),), "yes", 10 + at) for at, text in enumerate(("ABCD", "EF#G", "HI#J"))]
    with pytest.raises(CorruptData, match=r"^cal\.jsonl:11: router logits of MoE layer 0 are not finite; ") as caught:
        measure_profile(model, data, task="a", where="cal.jsonl", scores=ROUTER_ONLY)
    assert "\n" not in str(caught.value)
    assert measure_profile(model, data[:1], task="a").samples == 1


def test_expert_outputs_that_are_not_finite_name_layer_and_prompt(tmp_path: Path, examples: list[Example]) -> None:
    model = load_full_model(MemorySource(tiny_checkpoint(tmp_path)))
    make_full(model)
    model.store.arenas[1].field("down")[:, 0] = torch.nan
    with pytest.raises(CorruptData, match=r"^cal\.jsonl:\d+: expert outputs of MoE layer 1 are not finite; "):
        measure_profile(model, examples, task="a", where="cal.jsonl", scores=["reap"])


def test_logits_too_large_for_the_exponential_are_told(qwen: SlotModel) -> None:
    accumulator = ProfileAccumulator(1, 4, qwen.manifest.router, sums=sums_of(["peu-exp"]))
    accumulator.add(0, torch.full((1, 4), 800.0), torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1))
    with pytest.raises(InvalidInput, match="the sum utility_exp overflows"):
        accumulator.state()


def test_one_prompt_is_enough_to_profile(qwen: SlotModel, examples: list[Example]) -> None:
    one = measure_profile(qwen, examples[:1], task="capitals", scores=ALL)
    for name in SCORES:
        assert np.isfinite(scores(one.state, name)).all(), name
