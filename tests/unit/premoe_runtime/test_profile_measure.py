import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.profiles import write_examples
from support.sources import MemorySource
from support.tiny import FAMILIES, Family, prune, pruned_model, tiny_checkpoint, tiny_tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from premoe_runtime.engines.hf.model import SlotModel, load_slot_model
from premoe_runtime.formats.arrays import F32
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.errors import CorruptData, InvalidInput
from premoe_runtime.formats.pattern_set import PatternSet
from premoe_runtime.offline.batches import pad, plan_batches
from premoe_runtime.offline.calibration import Example, Message, PassedOver, read_calibration
from premoe_runtime.offline.patterns.build import BuildOptions, build_set
from premoe_runtime.offline.patterns.derive import specialist
from premoe_runtime.offline.profile.accumulator import ProfileAccumulator
from premoe_runtime.offline.profile.criteria.router import UTILITY
from premoe_runtime.offline.profile.measure import load_full_model, measure_profile
from premoe_runtime.offline.profile.record import Profile, merge
from premoe_runtime.offline.profile.scores import ROUTER_ONLY, USUAL, scores
from premoe_runtime.offline.profile.state import COUNTS, TOKENS
from premoe_runtime.offline.prompts import Prompt, Span, encode_prompt, encode_text
from premoe_runtime.probing.prober import Prober


def folder_and_model(tmp_path: Path, family: Family = "qwen3_moe") -> tuple[Path, SlotModel]:
    folder = tiny_checkpoint(tmp_path, family)
    return folder, load_full_model(MemorySource(folder))


def uneven_model(tmp_path: Path, family: Family = "qwen3_moe") -> tuple[PreTrainedModel, SlotModel]:
    """A stock model of layers of 9 and 16 experts, and the slot model of its checkpoint."""
    folder = tiny_checkpoint(tmp_path, family)
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, experts_implementation="grouped_mm")
    model = load_full_model(MemorySource(prune(folder, (9, 16))))
    return pruned_model(stock.eval(), family, (9, 16)), model


def examples_of(tmp_path: Path, task: str = "capitals", count: int = 24) -> list[Example]:
    return read_calibration(write_examples(tmp_path / f"{task}.jsonl", task, count))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("uneven", [False, True])
def test_the_pass_sums_what_the_stock_routers_choose(tmp_path: Path, family: Family, uneven: bool) -> None:
    if uneven:
        stock, model = uneven_model(tmp_path, family)
    else:
        folder, model = folder_and_model(tmp_path, family)
        stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    examples = examples_of(tmp_path)
    profile = measure_profile(model, examples, task="capitals", max_tokens=128)
    manifest = model.manifest
    accumulator = ProfileAccumulator(manifest.num_layers, manifest.num_experts, manifest.router)
    for layer, block in enumerate(stock.model.layers):
        block.mlp.gate.register_forward_hook(
            lambda module, inputs, output, layer=layer: accumulator.add(layer, output[0], output[2], output[1])
        )
    tokenizer = tiny_tokenizer()
    for example in examples:
        prompt = encode_prompt(tokenizer, example.messages).token_ids
        answer = (*encode_text(tokenizer, "yes"), tokenizer.eos_token_id)
        with torch.no_grad():
            stock(input_ids=torch.tensor([prompt + answer]))
    expected = accumulator.state()
    assert profile.state[TOKENS].tolist() == expected[TOKENS].tolist()
    assert profile.tokens == int(expected[TOKENS][0])
    assert profile.state[COUNTS].tolist() == expected[COUNTS].tolist()
    for metric in ("peu", "seer", "tcess"):
        assert np.allclose(scores(profile.state, metric), scores(expected, metric), atol=2e-3)
    assert profile.layer_experts == ((9, 16) if uneven else (16, 16))


def test_two_halves_merged_rank_like_one_pass_over_the_same_batches(tmp_path: Path) -> None:
    _, model = folder_and_model(tmp_path)
    examples = examples_of(tmp_path)
    # Batches of four prompts of equal length: the halves run the very batches of the whole.
    one = measure_profile(model, examples, task="capitals", max_tokens=4 * 24)
    halves = [
        measure_profile(model, part, task="capitals", max_tokens=4 * 24) for part in (examples[:12], examples[12:])
    ]
    merged = merge(halves)
    assert np.array_equal(merged.state[UTILITY], one.state[UTILITY])
    for metric in ("peu", "seer", "tcess", "counts"):
        assert np.array_equal(specialist(merged, metric).ranking, specialist(one, metric).ranking)
    assert np.array_equal(merged.signatures, one.signatures)


def test_signatures_are_those_the_prober_makes(tmp_path: Path) -> None:
    _, model = folder_and_model(tmp_path)
    examples = [
        Example(
            (Message("system", "Be brief."), Message("user", "ABC"), Message("assistant", "x"), Message("user", q)), "y"
        )
        for q in ("HELLO", "A LONGER QUESTION?", "Z")
    ]
    profile = measure_profile(model, examples, task="talk")
    prober = Prober(model.model, model.manifest)
    for row, example in enumerate(examples):
        prompt = encode_prompt(model.tokenizer, example.messages)
        probed = prober.signature(prompt.token_ids, range(prompt.span.start, prompt.span.stop))
        assert np.allclose(profile.signatures[row], probed, atol=1e-5)


def test_answers_count_only_when_given_and_never_change_signatures(tmp_path: Path) -> None:
    _, model = folder_and_model(tmp_path)
    examples = examples_of(tmp_path, count=6)
    given = measure_profile(model, examples, task="capitals", answers="given")
    none = measure_profile(model, examples, task="capitals", answers="none")
    assert given.tokens == none.tokens + 6 * len("yes.")
    assert np.allclose(given.signatures, none.signatures, atol=1e-5)
    assert [part.answers for part in (*given.calibration, *none.calibration)] == ["given", "none"]


def test_deeper_signature_layers_stand_side_by_side(tmp_path: Path) -> None:
    _, model = folder_and_model(tmp_path)
    examples = examples_of(tmp_path, count=4)
    both = measure_profile(model, examples, task="capitals", layers=(0, 1))
    first = measure_profile(model, examples, task="capitals")
    experts = model.manifest.num_experts
    assert both.signature.dimension == 2 * experts
    halves: F32 = both.signatures[:, :experts]
    assert np.allclose(halves / np.linalg.norm(halves, axis=1, keepdims=True), first.signatures, atol=1e-5)


def test_a_profile_of_uneven_layers_makes_patterns_of_what_exists(tmp_path: Path) -> None:
    _, model = uneven_model(tmp_path)
    examples = {task: examples_of(tmp_path, task) for task in ("capitals", "digits")}
    profiles = [
        Profile.from_bytes(measure_profile(model, found, task=task).to_bytes()) for task, found in examples.items()
    ]
    assert [profile.layer_experts for profile in profiles] == [(9, 16), (9, 16)]
    built = build_set(profiles, BuildOptions(metric="impact"))
    again = PatternSet.from_files(*built.pattern_set.to_files())
    assert again.layer_slots(16, 0) == (9, 16)
    for kept, total in ((4, 8), (8, 16), (12, 24), (14, 25), (16, 25)):
        slots = again.layer_slots(kept, 1)
        assert slots is not None
        assert sum(slots) == min(2 * (kept + 1), 25)
        for pattern in built.patterns:
            mask = pattern.kept(Budget(4, kept), slots)
            assert mask.sum() == total
            assert not (mask & ~model.manifest.exists).any()
    for metric in (*USUAL, "random"):
        pattern = specialist(profiles[0], metric)
        assert not (pattern.kept(Budget(4, 16)) ^ model.manifest.exists).any()
    (retention,) = [one for one in built.pattern_set.document.generalist_retention if one.budget == "4/16"]
    assert retention.mass == pytest.approx(1)


def test_a_short_first_layer_is_probed_as_profiled(tmp_path: Path) -> None:
    stock, model = uneven_model(tmp_path)
    prober = Prober(model.model, model.manifest)
    tokens = list(range(40, 60))
    found = prober.signature(tokens)
    gate = stock.model.layers[0].mlp.gate
    seen: list[torch.Tensor] = []
    gate.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    stock(torch.tensor([tokens]))
    mean = seen[0].softmax(-1).sqrt().mean(0)
    assert found.shape == (prober.dimension,) == (16,)
    assert np.allclose(found[:9], (mean / mean.norm()).numpy(), atol=1e-5)
    assert not found[9:].any()
    profile = measure_profile(model, examples_of(tmp_path, count=4), task="capitals")
    assert profile.signatures.shape == (4, 16)
    assert not profile.signatures[:, 9:].any()


def test_a_profile_that_contradicts_its_arrays_is_refused(tmp_path: Path) -> None:
    _, model = uneven_model(tmp_path)
    profile = measure_profile(model, examples_of(tmp_path, count=4), task="capitals", scores=ROUTER_ONLY)
    for wrong in ((9, 15), (9, 17), (9, 16, 16), (3, 16)):
        with pytest.raises(CorruptData, match="but layers have"):
            Profile.from_bytes(replace(profile, layer_experts=wrong).to_bytes())


def test_progress_is_told_and_the_recorder_is_taken_off(tmp_path: Path) -> None:
    _, model = folder_and_model(tmp_path)
    told: list[float] = []
    measure_profile(model, examples_of(tmp_path), task="capitals", max_tokens=100, advance=told.append)
    assert sum(told) == 24
    assert len(told) > 1
    calls: list[int] = []
    model.record(lambda layer, *_: calls.append(layer))
    model.model(input_ids=torch.tensor([[1, 2]]))
    assert calls == [0, 1]


def test_examples_that_no_request_could_be_are_left_out_and_counted(tmp_path: Path) -> None:
    _, model = folder_and_model(tmp_path)
    good = examples_of(tmp_path, count=4)
    long = Example((Message("user", "A" * 2000),), "x", 7)
    unused = PassedOver()
    with_long = measure_profile(model, [*good, long], task="a", where="cal.jsonl", passed_over=unused)
    assert with_long.samples == 4
    assert re.fullmatch(r"cal\.jsonl:7: \d+ tokens exceed the model's context of 1024", unused.places[0])
    assert (with_long.state[COUNTS] == measure_profile(model, good, task="a").state[COUNTS]).all()
    model.tokenizer.chat_template = (
        "{{ raise_exception('no') if messages[0]['content'] == '' else messages[0]['content'] }}"
    )
    refused = Example((Message("system", ""), Message("user", "x")), "y", 9)
    measure_profile(model, [*good, refused], task="a", where="cal.jsonl", passed_over=unused)
    assert unused.places[-1].startswith("cal.jsonl:9: the chat template refuses")


def test_too_long_examples_are_named_and_few_slots_refused(tmp_path: Path) -> None:
    folder, model = folder_and_model(tmp_path)
    long = Example((Message("user", "A" * 2000),), "x", 7)
    with pytest.raises(InvalidInput, match=r"cal\.jsonl:7: \d+ tokens exceed the model's context of 1024"):
        measure_profile(model, [long], task="a", where="cal.jsonl")
    small = load_slot_model(MemorySource(folder), slots=4)
    with pytest.raises(InvalidInput, match="all 16 experts"):
        measure_profile(small, examples_of(tmp_path, count=2), task="a")
    with pytest.raises(InvalidInput, match="device 'moon' cannot be used"):
        load_full_model(MemorySource(folder), device="moon")


def test_a_specialist_of_a_measured_profile_keeps_a_budget(tmp_path: Path) -> None:
    _, model = folder_and_model(tmp_path)
    pattern = specialist(measure_profile(model, examples_of(tmp_path), task="capitals"))
    assert pattern.kept(Budget(4, 6)).sum(axis=1).tolist() == [6, 6]
    assert pattern.weights_id == model.manifest.weights_id


def test_spans_hold_the_last_user_turn_only() -> None:
    tokenizer = tiny_tokenizer()
    prompt = encode_prompt(
        tokenizer,
        [Message("system", "SYS"), Message("user", "one"), Message("assistant", "two"), Message("user", "one")],
    )
    assert tokenizer.decode(list(prompt.token_ids[prompt.span.start : prompt.span.stop])) == "one"
    assert prompt.span.stop == len(prompt.token_ids) - 1
    plain = tiny_tokenizer()
    plain.chat_template = None
    assert encode_prompt(plain, [Message("user", "abc")]) == Prompt(encode_text(plain, "abc"), Span(0, 3))
    with pytest.raises(InvalidInput, match="no user turn with text"):
        encode_prompt(tokenizer, [Message("system", "x")])
    refusing = tiny_tokenizer()
    refusing.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InvalidInput, match="roles must alternate"):
        encode_prompt(refusing, [Message("user", "x")])


def test_batches_hold_every_sequence_once_within_their_bound() -> None:
    lengths = [5, 90, 3, 3, 40, 12, 7, 200, 1]
    batches = plan_batches(lengths, 96)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= 96
    assert plan_batches([], 96) == []
    padded = pad([[1, 2, 3], [4]], (1, 0))
    assert padded.token_ids.tolist() == [[4, 0, 0], [1, 2, 3]]
    assert padded.valid.tolist() == [[True, False, False], [True, True, True]]


def test_arithmetic_is_float32_on_the_cpu_unless_asked_for(tmp_path: Path) -> None:
    source = MemorySource(tiny_checkpoint(tmp_path, "qwen3_moe", torch.bfloat16))
    assert {p.dtype for p in load_full_model(source).model.parameters()} == {torch.float32}
    assert load_full_model(source, dtype="bfloat16").model.dtype == torch.bfloat16


def test_the_ranking_hardly_depends_on_the_arithmetic(tmp_path: Path) -> None:
    source = MemorySource(tiny_checkpoint(tmp_path, "qwen3_moe", torch.bfloat16))
    examples = examples_of(tmp_path)
    one, other = (
        specialist(measure_profile(load_full_model(source, dtype=dtype), examples, task="capitals"))
        for dtype in ("float32", "bfloat16")
    )
    budget = Budget(4, 8)
    assert (one.kept(budget) & other.kept(budget)).sum() >= 0.9 * one.kept(budget).sum()
