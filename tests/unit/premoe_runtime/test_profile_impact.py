"""Impact against a plain reading of its formula on the stock transformers class."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.profiles import profile as router_profile
from support.profiles import write_examples
from support.sources import MemorySource
from support.tiny import FAMILIES, Family, tiny_checkpoint, tiny_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM

from premoe_runtime.engines.hf.model import SlotModel
from premoe_runtime.formats import arrays
from premoe_runtime.formats.errors import CorruptData, InvalidInput
from premoe_runtime.formats.manifest import RouterSpec
from premoe_runtime.offline.calibration import Answers, Example, read_calibration
from premoe_runtime.offline.patterns.derive import generalist, specialist
from premoe_runtime.offline.profile.accumulator import ProfileAccumulator
from premoe_runtime.offline.profile.criteria.gradients import IMPACT
from premoe_runtime.offline.profile.gradient import margin
from premoe_runtime.offline.profile.measure import load_full_model, measure_profile
from premoe_runtime.offline.profile.record import Profile, merge
from premoe_runtime.offline.profile.samples import Sample, encode_examples, own_answers
from premoe_runtime.offline.profile.scores import ROUTER_ONLY, USUAL, scores, sums_of
from premoe_runtime.offline.profile.seen import Gradients, change
from premoe_runtime.offline.profile.state import P_BINS

COUNT = 8


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family: Family = request.param
    return tiny_checkpoint(tmp_path_factory.mktemp(family), family)


@pytest.fixture(scope="module")
def model(folder: Path) -> SlotModel:
    return load_full_model(MemorySource(folder))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> SlotModel:
    return load_full_model(MemorySource(tiny_checkpoint(tmp_path_factory.mktemp("qwen"), "qwen3_moe")))


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    return read_calibration(write_examples(tmp_path_factory.mktemp("data") / "capitals.jsonl", "capitals", COUNT))


def plain_impact(folder: Path, token_ids: tuple[int, ...], answer: int) -> list[Tensor]:
    """Per layer f64[E]: Σ over tokens (a d)², from the whole graph of the stock class; ``answer`` tokens at the end."""
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    inputs: list[Tensor] = []
    routed: list[Tensor] = []
    chosen: list[tuple[Tensor, Tensor]] = []
    for block in (layer.mlp for layer in stock.model.layers):
        block.gate.register_forward_hook(lambda _m, _i, out: chosen.append((out[2], out[1].detach())))
        block.experts.register_forward_pre_hook(lambda _m, i: inputs.append(i[0].detach()))
        block.experts.register_forward_hook(lambda _m, _i, out: routed.append(out))
    ids = torch.tensor([token_ids])
    logits = stock(input_ids=ids).logits[0].double()
    total = torch.zeros((), dtype=torch.float64)
    for place in range(len(token_ids) - answer - 1, len(token_ids) - 1):
        wanted = token_ids[place + 1]
        others = [v for v in range(logits.shape[1]) if v != wanted]
        total = total + logits[place, wanted] - torch.logsumexp(logits[place, others], 0)
    sensitivity = [g.norm(dim=-1) for g in torch.autograd.grad(total, routed)]
    result = []
    for layer, (experts_of, weights) in enumerate(chosen):
        experts = stock.model.layers[layer].mlp.experts
        sums = torch.zeros(experts.num_experts, dtype=torch.float64)
        for token, (x, y) in enumerate(zip(inputs[layer], routed[layer].detach(), strict=True)):
            for expert, g in zip(experts_of[token].tolist(), weights[token], strict=True):
                gate, up = (experts.gate_up_proj[expert] @ x).chunk(2)
                f = (experts.down_proj[expert] @ (experts.act_fn(gate) * up)).detach()
                renormalised = abs(float(weights[token].sum()) - 1) < 1e-3
                d = g / (1 - g) * (f - y).norm() if renormalised else g * f.norm()
                sums[expert] += float(d * sensitivity[layer][token]) ** 2
        result.append(sums)
    return result


def test_impact_is_what_the_formula_says_on_the_stock_class(
    folder: Path, model: SlotModel, examples: list[Example]
) -> None:
    profile = measure_profile(model, examples, task="capitals", max_tokens=128)
    expected = np.zeros(profile.state.shape)
    for sample in encode_examples(model, examples, answers="given", where="test"):
        sums = plain_impact(folder, sample.token_ids, len(sample.answer))
        expected += torch.stack(sums).numpy()
    assert np.allclose(profile.state[IMPACT], expected, rtol=2e-3, atol=1e-9)
    assert np.allclose(scores(profile.state, "impact"), expected / profile.tokens, rtol=2e-3, atol=1e-9)


def test_the_backward_pass_changes_no_other_statistic_and_can_be_left_out(
    qwen: SlotModel, examples: list[Example]
) -> None:
    whole = measure_profile(qwen, examples, task="capitals")
    router_only = measure_profile(qwen, examples, task="capitals", scores=ROUTER_ONLY)
    for metric in ROUTER_ONLY:
        assert np.array_equal(scores(whole.state, metric), scores(router_only.state, metric))
    assert np.array_equal(whole.signatures, router_only.signatures)
    for metric in ("impact", "norm"):
        with pytest.raises(InvalidInput, match=f"profile the task again with --score {metric}"):
            scores(router_only.state, metric)


def test_documents_merge_into_one_pass(qwen: SlotModel, examples: list[Example]) -> None:
    whole = measure_profile(qwen, examples, task="capitals")
    parts = merge([measure_profile(qwen, [example], task="capitals") for example in examples])
    assert np.allclose(parts.state[IMPACT], whole.state[IMPACT], rtol=1e-4)
    assert np.array_equal(specialist(parts, "impact").ranking, specialist(whole, "impact").ranking)
    router_only = measure_profile(qwen, examples, task="capitals", scores=ROUTER_ONLY)
    assert merge([whole, router_only]).state.sums.keys() == router_only.state.sums.keys()


def test_any_budget_is_a_prefix_of_what_the_file_keeps(qwen: SlotModel, examples: list[Example]) -> None:
    profile = measure_profile(qwen, examples, task="capitals")
    again = Profile.from_bytes(profile.to_bytes())
    assert np.array_equal(again.state[IMPACT], profile.state[IMPACT])
    assert np.array_equal(specialist(again, "impact").scores, np.float32(scores(profile.state, "impact")))


def older_file(profile: Profile, version: int, *, weighed: bool) -> bytes:
    """What an older version wrote of the same measurement: tokens by bin, and zeros for what was not measured."""
    tensors, metadata = arrays.decode(profile.to_bytes(), where="test")
    counts = tensors.pop("counts")
    tensors["chosen"] = np.zeros((*counts.shape, P_BINS), np.int64)
    tensors["chosen"][..., 7] = counts
    if version == 2:
        zeros = np.zeros(counts.shape)
        tensors = {"norm": zeros, "impact": zeros, **tensors}
        tensors["weighed"] = tensors["tokens"] if weighed else np.zeros_like(tensors["tokens"])
    return arrays.encode(tensors, metadata | {"format": f"premoe-profile/{version}"})


@pytest.mark.parametrize("version", [1, 2])
def test_older_profiles_without_gradients_are_read_as_what_they_hold(version: int) -> None:
    made = router_profile()
    data = older_file(made, version, weighed=False)
    old = Profile.from_bytes(data)
    assert old.profile_id == arrays.digest(data) != made.profile_id
    assert old.state.sums.keys() == made.state.sums.keys()
    for metric in ROUTER_ONLY:
        assert np.array_equal(scores(old.state, metric), scores(made.state, metric))
    with pytest.raises(InvalidInput, match="profile the task again"):
        specialist(old, "impact")


def test_an_older_profile_with_gradients_ranks_as_before(qwen: SlotModel, examples: list[Example]) -> None:
    made = measure_profile(qwen, examples, task="capitals")
    old = Profile.from_bytes(older_file(made, 2, weighed=True))
    for metric in USUAL:
        assert np.array_equal(specialist(old, metric).ranking, specialist(made, metric).ranking)
    both = merge([old, made])
    assert both.state[IMPACT].tolist() == (2 * made.state[IMPACT]).tolist()
    assert Profile.from_bytes(both.to_bytes()).profile_id == both.profile_id


def test_a_profile_of_a_later_format_is_refused_by_its_name() -> None:
    tensors, metadata = arrays.decode(router_profile().to_bytes(), where="test")
    with pytest.raises(CorruptData, match="format 'premoe-profile/9' is none that this version reads; remove it"):
        Profile.from_bytes(arrays.encode(tensors, metadata | {"format": "premoe-profile/9"}))


@pytest.mark.parametrize("answers", ["own", "none"])
def test_answers_are_the_models_own_or_every_token(qwen: SlotModel, examples: list[Example], answers: Answers) -> None:
    profile = measure_profile(qwen, examples, task="capitals", answers=answers)
    prompts = sum(len(s.prompt.token_ids) for s in encode_examples(qwen, examples, answers="none", where="test"))
    assert (profile.state[IMPACT].sum(axis=1) > 0).all()
    assert profile.tokens > prompts if answers == "own" else profile.tokens == prompts


def answered(model: SlotModel, samples: list[Sample]) -> list[Sample]:
    written = {index: answer for found in own_answers(model, samples) for index, answer in found.items()}
    return [replace(sample, answer=written[index]) for index, sample in enumerate(samples)]


def test_own_answers_are_what_greedy_decoding_writes(qwen: SlotModel, examples: list[Example]) -> None:
    measure_profile(qwen, examples, task="capitals", scores=ROUTER_ONLY)  # brings every expert in
    samples = encode_examples(qwen, examples, answers="own", where="test")
    together = answered(qwen, samples)
    assert [s.answer for s in together] == [answered(qwen, [s])[0].answer for s in samples]
    for sample in together:
        with torch.no_grad():
            logits = qwen.model(input_ids=torch.tensor([sample.token_ids])).logits[0]
        first = len(sample.prompt.token_ids) - 1
        assert logits[first:-1].argmax(-1).tolist() == list(sample.answer)
        assert tiny_tokenizer().eos_token_id not in sample.answer[:-1]


def test_the_margin_has_the_gradient_of_the_weighed_cross_entropy() -> None:
    logits = (torch.randn(5, 11, generator=torch.Generator().manual_seed(0)) * 3).requires_grad_()
    wanted = torch.tensor([0, 3, 10, 3, 7])
    margins = torch.autograd.grad(margin(logits, wanted), logits)[0]
    p = logits.softmax(-1).gather(1, wanted[:, None])[:, 0].detach()
    loss = torch.nn.functional.cross_entropy(logits, wanted, reduction="none") / (1 - p)
    assert torch.allclose(margins, -torch.autograd.grad(loss.sum(), logits)[0], atol=1e-5)


def test_a_sure_answer_still_has_a_gradient() -> None:
    logits = torch.tensor([[60.0, 1.0, 0.0]], requires_grad=True)
    assert torch.autograd.grad(margin(logits, torch.tensor([0])), logits)[0][0, 0] == 1


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_change_is_that_of_the_output_when_the_others_share_the_weight(scale: float) -> None:
    draw = torch.Generator().manual_seed(1)
    weights = torch.rand(3, 4, generator=draw).softmax(-1) * scale
    each = torch.randn(3, 4, 6, generator=draw)
    found = change(RouterSpec(score="sigmoid", renormalise=True, scale=scale), weights, each)
    output = (weights[..., None] * each).sum(1)
    for gone in range(4):
        rest = [rank for rank in range(4) if rank != gone]
        shared = weights[:, rest] / weights[:, rest].sum(1, keepdim=True) * scale
        without = (shared[..., None] * each[:, rest]).sum(1)
        assert torch.allclose(found[:, gone], (output - without).norm(dim=-1), rtol=1e-4)


def test_change_is_bounded_and_simple_where_nothing_is_shared() -> None:
    each = torch.ones(1, 2, 4)
    alone = change(RouterSpec(score="softmax", renormalise=False), torch.tensor([[0.5, 0.25]]), each)
    assert alone.tolist() == [[1.0, 0.5]]
    top_1 = change(RouterSpec(score="softmax", renormalise=True), torch.ones(1, 1), each[:, :1])
    assert top_1.tolist() == [[2.0]]
    sure = change(RouterSpec(score="softmax", renormalise=True), torch.tensor([[1.0, 0.0]]), each * torch.rand(4))
    assert torch.isfinite(sure).all()


def test_gradients_that_are_not_finite_are_told() -> None:
    router = RouterSpec(score="softmax", renormalise=True)
    accumulator = ProfileAccumulator(1, 4, router, sums=sums_of(["impact"]))
    ids, gradient = torch.zeros(1, 1, dtype=torch.long), torch.full((1, 3), torch.nan)
    with pytest.raises(CorruptData, match="token 0: gradients of MoE layer 0 are not finite"):
        accumulator.add_gradients(0, Gradients(router, ids, torch.ones(1, 1), torch.ones(1, 1, 3), gradient))


def test_a_generalist_by_impact_takes_shares_of_each_tasks_total() -> None:
    def weighed(task: str, impact: list[float]) -> Profile:
        made = router_profile(task)
        sums = {**made.state.sums, IMPACT: np.tile(np.array(impact + [0.0] * 4), (2, 1))}
        return replace(made, state=replace(made.state, sums=sums))

    loud, quiet = weighed("loud", [800.0, 100.0, 50.0, 50.0]), weighed("quiet", [0.1, 0.2, 0.6, 0.1])
    assert np.allclose(generalist([loud, quiet], "impact").scores[0, :4], [0.225, 0.075, 0.1625, 0.0375])
