"""The restricted router's arithmetic, against the stock routers and against a per-token reference in plain Python."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny import tiny_config
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter
from transformers.models.olmoe.modeling_olmoe import OlmoeTopKRouter
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

from premoe_runtime.engines.hf.router import Routing, route
from premoe_runtime.engines.hf.step_state import LayerRules, StepState
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.manifest import RouterSpec

EXPERTS, TOP_K = 16, 4
STOCK: dict[str, tuple[Any, Any, RouterSpec]] = {
    "qwen3_moe": (
        Qwen3MoeTopKRouter,
        tiny_config("qwen3_moe", norm_topk_prob=True),
        RouterSpec(score="softmax", renormalise=True),
    ),
    "qwen3_moe, plain": (
        Qwen3MoeTopKRouter,
        tiny_config("qwen3_moe", norm_topk_prob=False),
        RouterSpec(score="softmax", renormalise=False),
    ),
    "mixtral": (
        MixtralTopKRouter,
        tiny_config("mixtral"),
        RouterSpec(score="softmax", renormalise=True, weights_dtype="float32"),
    ),
    "olmoe": (
        OlmoeTopKRouter,
        tiny_config("olmoe", norm_topk_prob=False),
        RouterSpec(score="softmax", renormalise=False),
    ),
}


def run(
    spec: RouterSpec,
    logits: torch.Tensor,
    kept: torch.Tensor | None = None,
    *,
    sliced: bool = False,
    active: int | list[int] | None = None,
    top_k: int = TOP_K,
) -> Routing:
    tokens = logits.shape[0]
    kept = torch.ones_like(logits, dtype=torch.bool) if kept is None else kept.expand(logits.shape)
    state = StepState(torch.where(kept, 0.0, -torch.inf)[None], torch.full((tokens,), sliced), top_k, [logits.shape[1]])
    state.set(range(tokens), active or top_k)
    state.take(tokens)
    return route(spec, logits, state.layers[0])


@pytest.mark.parametrize("name", STOCK)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_without_a_mask_it_is_the_stock_router_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    stock_class, config, spec = STOCK[name]
    generator = torch.Generator().manual_seed(0)
    router = stock_class(config).to(dtype)
    with torch.no_grad():
        router.weight.copy_(torch.randn(router.weight.shape, generator=generator))
        hidden = torch.randn(200, 64, generator=generator).to(dtype)
        logits, weights, ids = router(hidden)
    found = run(spec, logits)
    assert torch.equal(found.ids, ids)
    assert torch.equal(found.weights, weights)
    assert found.weights.dtype == weights.dtype
    assert found.mass is None


@pytest.mark.parametrize("name", STOCK)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fewer_experts_weigh_as_a_stock_router_with_that_top_k(name: str, dtype: torch.dtype) -> None:
    """Of 8 ranks 5 to 7 fill no vector register: a sum over 8 with zeros adds in another order."""
    stock_class, config, spec = STOCK[name]
    generator = torch.Generator().manual_seed(0)
    router = stock_class(config).to(dtype)
    widths = torch.randint(1, 9, (300,), generator=generator)
    with torch.no_grad():
        router.weight.copy_(torch.randn(router.weight.shape, generator=generator))
        hidden = torch.randn(300, 64, generator=generator).to(dtype)
        logits, _, _ = router(hidden)
        mixed = run(spec, logits, active=widths.tolist(), top_k=8)
        for width in range(1, 9):
            router.top_k = width
            _, weights, ids = router(hidden)
            alone = run(spec, logits, active=width, top_k=8)
            assert torch.equal(alone.weights, weights)
            assert torch.equal(alone.ids, ids)
            of = widths == width
            assert torch.equal(mixed.weights[of, :width], weights[of])
            assert torch.equal(mixed.ids[of, :width], ids[of])
            assert not mixed.weights[of, width:].any()


def reference(
    spec: RouterSpec, logits: list[float], kept: list[bool], sliced: bool, active: int
) -> tuple[dict[int, float], float]:
    """Expert -> weight, and the retained mass, in plain Python."""
    everyone = range(len(logits))

    def softmax(over: list[int]) -> dict[int, float]:
        top = max(logits[e] for e in over)
        parts = {e: math.exp(logits[e] - top) for e in over}
        return {e: part / sum(parts.values()) for e, part in parts.items()}

    if spec.score == "sigmoid":
        scores = {e: 1 / (1 + math.exp(-logits[e])) for e in everyone}
        full = scores
    else:
        full = softmax(list(everyone))
        scores = softmax([e for e in everyone if kept[e]]) if sliced else full
    chosen = sorted((e for e in everyone if kept[e]), key=lambda e: -logits[e])[: min(active, TOP_K)]
    if spec.score == "topk_softmax":
        weights = softmax(chosen)
    else:
        weights = {e: scores[e] for e in chosen}
    if spec.renormalise:
        weights = {e: w / sum(weights.values()) for e, w in weights.items()}
    mass = sum(full[e] for e in everyone if kept[e]) / sum(full.values())
    return {e: w * spec.scale for e, w in weights.items()}, mass


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_every_kind_of_router_against_the_reference(data: st.DataObject) -> None:
    spec = RouterSpec(
        score=data.draw(st.sampled_from(["softmax", "sigmoid", "topk_softmax"])),
        renormalise=data.draw(st.booleans()),
        scale=data.draw(st.sampled_from([1.0, 2.5])),
        weights_dtype="float32",
    )
    order = data.draw(st.permutations(range(EXPERTS)))
    logits = torch.tensor([position * 0.37 - 3.0 for position in order], dtype=torch.float32)
    kept = torch.zeros(EXPERTS, dtype=torch.bool)
    kept[sorted(data.draw(st.sets(st.integers(0, EXPERTS - 1), min_size=1)))] = True
    sliced, active = data.draw(st.booleans()), data.draw(st.integers(1, TOP_K))

    found = run(spec, logits[None], kept, sliced=sliced, active=active)
    expected, mass = reference(spec, logits.tolist(), kept.tolist(), sliced, active)
    pairs = zip(found.ids[0].tolist(), found.weights[0].tolist(), strict=True)
    weights = {expert: weight for expert, weight in pairs if expert != EXPERTS}
    assert weights == pytest.approx(expected, rel=1e-5)
    assert all(w == 0 for e, w in zip(found.ids[0].tolist(), found.weights[0].tolist(), strict=True) if e == EXPERTS)
    assert (1.0 if found.mass is None else float(found.mass[0])) == pytest.approx(mass, rel=1e-5)


def test_widths_may_differ_per_token() -> None:
    logits = torch.randn(4, EXPERTS, generator=torch.Generator().manual_seed(0))
    spec = RouterSpec(score="softmax", renormalise=True)
    together = run(spec, logits, active=[1, 2, 3, 4])
    for token, width in enumerate((1, 2, 3, 4)):
        alone = run(spec, logits[token : token + 1], active=width)
        assert torch.equal(together.ids[token, :width], alone.ids[0])
        assert torch.equal(together.weights[token, :width], alone.weights[0])
        assert int((together.ids[token] != EXPERTS).sum()) == width
        assert float(together.weights[token].sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "topk_softmax"])
@pytest.mark.parametrize("sliced", [True, False])
def test_a_row_that_keeps_nothing_gives_zeros_not_nans(score: Any, sliced: bool) -> None:
    spec = RouterSpec(score=score, renormalise=True)
    found = run(spec, torch.randn(3, EXPERTS), torch.zeros(EXPERTS, dtype=torch.bool), sliced=sliced)
    assert torch.equal(found.weights, torch.zeros(3, 1))
    assert torch.equal(found.ids, torch.full((3, 1), EXPERTS))
    assert found.mass is not None
    assert torch.equal(found.mass, torch.zeros(3))


def tables(*kept: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mask f32[2, P, E] and flags of rows that keep this many experts in layer 0 and all in layer 1."""
    mask = torch.zeros(2, len(kept), EXPERTS)
    for row, count in enumerate(kept):
        mask[0, row, count:] = -torch.inf
    return mask, torch.zeros(len(kept), dtype=torch.bool)


def listed(rules: LayerRules) -> list[tuple[int, list[int]]]:
    """Ranks used, and the tokens that use them."""
    return [(count, tokens.tolist() if isinstance(tokens, torch.Tensor) else []) for count, tokens in rules.ranks]


def test_a_step_with_every_expert_has_no_mask() -> None:
    state = StepState(*tables(EXPERTS, 3), TOP_K, (EXPERTS, EXPERTS))
    state.take(1000)
    assert [(rules.mask, rules.ranks) for rules in state.layers] == [(None, [(TOP_K, slice(None))])] * 2
    assert torch.equal(state.retained_mass(), torch.ones(1000))
    state.set(1, 2)
    state.take(5)
    assert state.layers[0].mask is not None
    assert state.layers[0].mask.shape == (1, EXPERTS)
    assert state.layers[0].ranks == [(2, slice(None))]


def test_a_row_that_keeps_less_than_it_may_use_uses_what_it_keeps() -> None:
    state = StepState(*tables(EXPERTS, 3, 0), TOP_K, (EXPERTS, EXPERTS))
    state.set([0, 1, 2, 1], [4, 4, 4, 2])
    state.take(4)
    assert listed(state.layers[0]) == [(2, [3]), (3, [1]), (4, [0])]
    assert listed(state.layers[1]) == [(2, [3]), (4, [0, 1, 2])]


def test_tables_are_read_when_a_forward_begins() -> None:
    mask, sliced = tables(EXPERTS, EXPERTS)
    state = StepState(mask, sliced, TOP_K, (EXPERTS, EXPERTS))
    state.set([0, 1], TOP_K)
    mask[1, 0, 3] = -torch.inf
    sliced[1] = True
    with torch.inference_mode():
        state.take(2)
    found = state.layers[1]
    assert found.mask is not None
    assert (found.mask < 0).nonzero().tolist() == [[0, 3]]
    assert isinstance(found.sliced, torch.Tensor)
    assert found.sliced.tolist() == [[False], [True]]


def test_step_state_refuses_what_does_not_fit() -> None:
    state = StepState(*tables(EXPERTS), TOP_K, (EXPERTS, EXPERTS))
    with pytest.raises(InvalidInput, match="differ in length"):
        state.set([0] * 3, [1] * 4)
    with pytest.raises(InvalidInput, match="1 to 4, not 0 to 0"):
        state.set(0, 0)
    with pytest.raises(InvalidInput, match="not 1 to 5"):
        state.set(0, [1, 5])
    state.set([0] * 3, 1)
    with pytest.raises(InvalidInput, match="set for 3 tokens, but the forward has 4"):
        state.take(4)
