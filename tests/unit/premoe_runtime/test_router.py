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

from premoe_runtime.engines.hf.router import Routing, StepState, route
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
    active: int | torch.Tensor = TOP_K,
) -> Routing:
    tokens = logits.shape[0]
    kept = torch.ones_like(logits, dtype=torch.bool) if kept is None else kept.expand(logits.shape)
    mask = torch.zeros(logits.shape).masked_fill(~kept, -torch.inf)
    width = active if isinstance(active, torch.Tensor) else torch.full((tokens,), active)
    return route(spec, TOP_K, logits, mask, torch.full((tokens,), sliced), width)


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
    torch.testing.assert_close(found.mass, torch.ones(200))


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
    assert float(found.mass[0]) == pytest.approx(mass, rel=1e-5)


def test_widths_may_differ_per_token() -> None:
    logits = torch.randn(4, EXPERTS, generator=torch.Generator().manual_seed(0))
    spec = RouterSpec(score="softmax", renormalise=True)
    together = run(spec, logits, active=torch.tensor([1, 2, 3, 4]))
    for token, width in enumerate((1, 2, 3, 4)):
        alone = run(spec, logits[token : token + 1], active=width)
        assert torch.equal(together.ids[token], alone.ids[0])
        assert torch.equal(together.weights[token], alone.weights[0])
        assert int((together.ids[token] != EXPERTS).sum()) == width
        assert float(together.weights[token].sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "topk_softmax"])
@pytest.mark.parametrize("sliced", [True, False])
def test_a_row_that_keeps_nothing_gives_zeros_not_nans(score: Any, sliced: bool) -> None:
    spec = RouterSpec(score=score, renormalise=True)
    found = run(spec, torch.randn(3, EXPERTS), torch.zeros(EXPERTS, dtype=torch.bool), sliced=sliced)
    assert torch.equal(found.weights, torch.zeros(3, TOP_K))
    assert torch.equal(found.ids, torch.full((3, TOP_K), EXPERTS))
    assert torch.equal(found.mass, torch.zeros(3))


def test_step_state_grows_and_keeps_plain_values() -> None:
    state = StepState(2, TOP_K, torch.device("cpu"))
    state.set(3, 2)
    state.take(5)
    address = state.rows.data_ptr()
    state.take(60)
    assert state.rows.data_ptr() == address
    state.take(1000)
    assert state.rows[:1000].tolist() == [3] * 1000
    assert state.active[:1000].tolist() == [2] * 1000
    state.set(torch.arange(3000) % 7, 1)
    state.take(3000)
    assert state.rows[:3000].tolist() == [i % 7 for i in range(3000)]
    assert state.retained_mass().shape == (3000,)


def test_step_state_that_grew_in_inference_mode_can_be_set_outside() -> None:
    state = StepState(2, TOP_K, torch.device("cpu"))
    with torch.inference_mode():
        state.take(1000)
        state.mass[0, :1000] = torch.ones(1000)
    state.set(1, 2)
    assert state.rows[:1000].tolist() == [1] * 1000
    assert state.retained_mass()[0] == 0.5


def test_step_state_refuses_what_does_not_fit() -> None:
    state = StepState(2, TOP_K, torch.device("cpu"))
    with pytest.raises(InvalidInput, match="differ in length"):
        state.set(torch.zeros(3, dtype=torch.int64), torch.ones(4, dtype=torch.int64))
    with pytest.raises(InvalidInput, match="1 to 4, not 0 to 0"):
        state.set(0, 0)
    with pytest.raises(InvalidInput, match="not 1 to 5"):
        state.set(0, torch.tensor([1, 5]))
    state.set(torch.zeros(3, dtype=torch.int64), 1)
    with pytest.raises(InvalidInput, match="set for 3 tokens, but the forward has 4"):
        state.take(4)
