"""Biases, groups and other arithmetic of routers: against stock routers masked from outside, and against plain Python.

Stock classes drop groups with one expert left and may choose experts that are masked; there only the plain reference
counts (runtime decision 3).
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.oracle import masked_routers
from support.tiny import tiny_config, tiny_model

from premoe_runtime.engines.hf.router import Routing, route
from premoe_runtime.engines.hf.step_state import StepState
from premoe_runtime.families import stock
from premoe_runtime.families.registry import FAMILIES
from premoe_runtime.formats.manifest import RouterSpec

EXPERTS, TOP_K, HIDDEN = 16, 4, 64
LIMITED: dict[str, Any] = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}
STOCK: dict[str, tuple[str, dict[str, Any]]] = {
    "softmax, scaled": ("deepseek_v2", {}),
    "softmax, best of each group": ("deepseek_v2", LIMITED),
    "sigmoid and bias, best two of each group": ("deepseek_v3", {}),
    "sigmoid and bias, not renormalised": ("deepseek_v3", {"norm_topk_prob": False, "routed_scaling_factor": 0.5}),
    "sigmoid and bias, one group": ("glm4_moe", {}),
    "sigmoid and bias of the block": ("minimax_m2", {}),
    "sigmoid in the model's dtype": ("lfm2_moe", {}),
    "sigmoid in the model's dtype, no bias": ("lfm2_moe", {"use_expert_bias": False, "norm_topk_prob": False}),
    "softmax and bias": ("ernie4_5_moe", {}),
    "softmax of the chosen": ("granitemoe", {}),
    "softmax in float32": ("hunyuan_v1_moe", {}),
    "softmax of the chosen, biased logits": ("gpt_oss", {}),
    "sparsemixer": ("phimoe", {}),
    "sparsemixer, hardly any neighbours": ("phimoe", {"router_jitter_noise": 0.01}),
}


def run(
    spec: RouterSpec,
    logits: torch.Tensor,
    kept: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    sliced: bool = False,
    active: int = TOP_K,
    dtype: torch.dtype | None = None,
) -> Routing:
    state = StepState(torch.where(kept, 0.0, -torch.inf)[None, None], torch.tensor([sliced]), TOP_K, [len(kept)])
    state.set(0, active)
    state.take(len(logits))
    return route(spec, logits, state.layers[0], bias=bias, dtype=dtype)


def two_of_each_group(seed: int) -> torch.Tensor:
    order = torch.rand(4, 4, generator=torch.Generator().manual_seed(seed)).argsort(-1)
    return (order < 2).flatten()


@pytest.mark.parametrize("kind", STOCK)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=("fp32", "bf16"))
def test_it_is_the_stock_router_masked_from_outside(kind: str, dtype: torch.dtype) -> None:
    name, overrides = STOCK[kind]
    family, model = FAMILIES[name], tiny_model(name, dtype, **overrides)
    block = model.config.num_hidden_layers - 1
    sparse = stock.sparse_part(model, family, block)
    assert sparse is not None
    router = sparse.get_submodule(family.router_module)
    spec, tensors = family.router(tiny_config(name, **overrides)), family.router_tensors(router)
    handed = [getattr(sparse, family.handed_correction, None)] if family.handed_correction else []
    hidden = torch.randn(400, HIDDEN, generator=torch.Generator().manual_seed(1)).to(dtype)
    for kept in (torch.ones(EXPERTS, dtype=torch.bool), two_of_each_group(2), two_of_each_group(3)):
        with torch.no_grad(), masked_routers(model, family, kept.expand(2, -1)) as seen:
            given = dict(zip(family.router_returns, router(hidden, *handed), strict=True))
        top_k = given["ids"].shape[-1]
        bias = handed[0] if handed else tensors.correction
        found = run(spec, given["logits"], kept, bias=bias, active=top_k, dtype=dtype)
        assert torch.equal(found.ids, given["ids"])
        assert torch.equal(found.weights, given["weights"])
        assert found.weights.dtype == given["weights"].dtype
        assert seen.share_changed >= 0.3 or kept.all()


def reference(
    spec: RouterSpec, logits: list[float], bias: list[float], kept: list[bool], sliced: bool, active: int
) -> dict[int, float]:
    """Expert -> weight in plain Python."""
    everyone = range(len(logits))
    counted = [e for e in everyone if kept[e] or not sliced]
    if spec.score == "softmax":
        whole = sum(math.exp(logits[e]) for e in counted)
        scores = {e: math.exp(logits[e]) / whole for e in counted}
    else:
        scores = {e: 1 / (1 + math.exp(-logits[e])) for e in everyone}
    choice = {e: scores[e] + (bias[e] if spec.bias else 0.0) for e in everyone if kept[e]}
    size = len(logits) // spec.groups
    members = [[e for e in range(g * size, (g + 1) * size) if kept[e]] for g in range(spec.groups)]
    width = 2 if spec.group_score == "top2" else 1
    merit = {g: sum(sorted((choice[e] for e in m), reverse=True)[:width]) for g, m in enumerate(members) if m}
    groups = sorted(merit, key=lambda g: -merit[g])[: spec.chosen_groups]
    chosen = sorted((e for g in groups for e in members[g]), key=lambda e: -choice[e])[:active]
    total = max(sum(scores[e] for e in chosen), spec.floor) if spec.renormalise else 1.0
    return {e: scores[e] / total * spec.scale for e in chosen}


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_groups_and_biases_against_the_reference(data: st.DataObject) -> None:
    """Every number of survivors in every group, none included."""
    bias = data.draw(st.booleans())
    groups = data.draw(st.sampled_from([1, 2, 4, 8]))
    spec = RouterSpec(
        score=data.draw(st.sampled_from(["softmax", "sigmoid"])),
        renormalise=data.draw(st.booleans()),
        scale=data.draw(st.sampled_from([1.0, 2.5])),
        weights_dtype="float32",
        bias=bias,
        groups=groups,
        chosen_groups=data.draw(st.integers(1, groups)),
        group_score="top2" if bias else data.draw(st.sampled_from(["top2", "max"])),
        floor=data.draw(st.sampled_from([0.0, 1e-20, 0.6])),
        ranked=data.draw(st.booleans()),
    )
    order, other = data.draw(st.permutations(range(EXPERTS))), data.draw(st.permutations(range(EXPERTS)))
    logits = [position * 0.37 - 3.0 for position in order]
    biases = [position * 0.0231 - 0.15 for position in other]
    kept = [False] * EXPERTS
    for group in range(4):
        for expert in data.draw(st.sets(st.integers(0, 3), max_size=4)):
            kept[group * 4 + expert] = True
    sliced, active = data.draw(st.booleans()), data.draw(st.integers(1, TOP_K))
    found = run(
        spec,
        torch.tensor([logits]),
        torch.tensor(kept),
        bias=torch.tensor(biases) if bias else None,
        sliced=sliced,
        active=active,
    )
    pairs = zip(found.ids[0].tolist(), found.weights[0].tolist(), strict=True)
    weights = {expert: weight for expert, weight in pairs if weight != 0}
    expected = reference(spec, logits, biases, kept, sliced, active)
    assert weights == pytest.approx(expected, rel=1e-4)
    assert found.weights.isfinite().all()


GROUPED = RouterSpec(
    score="sigmoid", renormalise=True, weights_dtype="float32", bias=True, groups=4, chosen_groups=2, ranked=False
)


def kept_only(*experts: int) -> torch.Tensor:
    kept = torch.zeros(EXPERTS, dtype=torch.bool)
    kept[list(experts)] = True
    return kept


def test_a_group_with_one_expert_left_still_counts() -> None:
    """The stock class makes its sum -inf and passes over the best expert of all."""
    logits = torch.full((1, EXPERTS), -1.0)
    logits[0, 5] = 9.0
    found = run(GROUPED, logits, kept_only(0, 1, 5, 8, 9), bias=torch.zeros(EXPERTS))
    assert 5 in found.ids[0].tolist()
    assert sorted(found.ids[0].tolist())[-1] == EXPERTS  # two groups of three experts, for four ranks
    assert float(found.weights.sum()) == pytest.approx(1.0)


def test_an_empty_group_is_never_chosen_however_high_its_biases() -> None:
    bias = torch.zeros(EXPERTS)
    bias[4:8] = 50.0
    found = run(GROUPED, torch.zeros(3, EXPERTS), kept_only(0, 1, 2, 13, 14), bias=bias)
    assert set(found.ids.flatten().tolist()) <= {0, 1, 2, 13, 14, EXPERTS}
    assert torch.allclose(found.weights.sum(-1), torch.ones(3))


@pytest.mark.parametrize("spec", [GROUPED, GROUPED.model_copy(update={"groups": 1, "chosen_groups": 1})])
def test_one_expert_or_none_left(spec: RouterSpec) -> None:
    bias = torch.full((EXPERTS,), -2.0)
    alone = run(spec, torch.randn(5, EXPERTS), kept_only(6), bias=bias)
    assert alone.ids.tolist() == [[6]] * 5
    assert torch.equal(alone.weights, torch.ones(5, 1))
    nothing = run(spec, torch.randn(5, EXPERTS), kept_only(), bias=bias)
    assert nothing.ids.tolist() == [[EXPERTS]] * 5
    assert not nothing.weights.any()


@pytest.mark.parametrize("active", [1, 2])
def test_sparsemixer_weighs_among_the_kept_that_are_nearly_as_good(active: int) -> None:
    logits = torch.full((1, EXPERTS), -3.0)
    logits[0, :5] = torch.tensor([2.0, 1.9, 1.8, 1.0, 0.9])
    spec = RouterSpec(score="sparsemixer", renormalise=False, jitter=0.06)
    found = run(spec, logits, kept_only(0, 2, 3, 4), active=active)
    assert found.ids.tolist() == [[0, 2][:active]]
    near = math.exp(2.0) / (math.exp(2.0) + math.exp(1.8))  # 1.8 is within 0.12 × 2, 1.9 is left out, 1.0 is far
    assert found.weights[0].tolist() == pytest.approx([near, 1.0][:active])
    assert float(run(spec, logits, kept_only(8), active=active).weights) == 1.0
    assert not run(spec, logits, kept_only(), active=active).weights.any()


def test_a_bias_chooses_and_never_weighs() -> None:
    spec = RouterSpec(score="softmax", renormalise=False, weights_dtype="float32", bias=True)
    logits, bias = torch.zeros(1, EXPERTS), torch.zeros(EXPERTS)
    bias[[3, 7, 9, 15]] = torch.tensor([4.0, 3.0, 2.0, 1.0])
    found = run(spec, logits, torch.ones(EXPERTS, dtype=torch.bool), bias=bias)
    assert found.ids.tolist() == [[3, 7, 9, 15]]
    assert torch.equal(found.weights, torch.full((1, 4), 1 / EXPERTS))


def test_fields_of_later_families_are_not_in_older_manifests() -> None:
    old = {"score": "softmax", "renormalise": True, "scale": 1.0, "weights_dtype": "model"}
    assert RouterSpec(score="softmax", renormalise=True).model_dump(mode="json") == old
    assert RouterSpec.model_validate(GROUPED.model_dump(mode="json")) == GROUPED


def test_logits_in_float32_where_the_family_says_so() -> None:
    router = SimpleNamespace(weight=torch.randn(EXPERTS, HIDDEN).bfloat16(), e_score_correction_bias=torch.zeros(1, 3))
    tensors = FAMILIES["deepseek_v3"].router_tensors(router)
    assert tensors.bias is None
    assert tensors.correction.shape == (3,)
