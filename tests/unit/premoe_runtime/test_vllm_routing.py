"""The restricted router in vLLM's order of arithmetic, and rows of tokens: pure tensors, no vLLM."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.oracle import random_kept
from support.sources import MemorySource
from support.tiny import tiny_checkpoint

from premoe_runtime.engines.hf.router import route
from premoe_runtime.engines.hf.step_state import ALL_TOKENS, LayerRules
from premoe_runtime.engines.vllm.mass import NOTED_TOKENS, RetainedMass
from premoe_runtime.engines.vllm.routing import (
    choose,
    choose_for,
    choose_kept,
    local_slots,
    retained,
    slot_map,
    slots_of,
)
from premoe_runtime.engines.vllm.rows import TokenRows
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.formats.manifest import RouterSpec
from premoe_runtime.residency.ranks import share
from premoe_runtime.residency.slot_shape import SlotShape
from premoe_runtime.residency.slot_store import SlotStore

TOKENS, EXPERTS, TOP_K = 40, 16, 4
UNMASKED = torch.zeros(TOKENS, EXPERTS)
SELECTION = torch.zeros(TOKENS, 1, dtype=torch.bool)
each_kind = pytest.mark.parametrize("renormalise", [True, False])


GROUPED = RouterSpec(
    score="sigmoid", renormalise=True, bias=True, groups=4, chosen_groups=2, floor=1e-20, ranked=False, scale=2.5
)


SIGMOID = RouterSpec(score="sigmoid", renormalise=True)
BIASED = RouterSpec(score="softmax", renormalise=True, bias=True, scale=1.5)


def softmax(renormalise: bool) -> RouterSpec:
    return RouterSpec(score="softmax", renormalise=renormalise)


def logits(seed: int = 0) -> torch.Tensor:
    return torch.randn(TOKENS, EXPERTS, generator=torch.Generator().manual_seed(seed))


def masked(kept: torch.Tensor) -> torch.Tensor:
    return torch.where(kept, 0.0, -torch.inf).expand(TOKENS, EXPERTS)


def dense(weights: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
    return torch.zeros(TOKENS, EXPERTS).scatter(-1, experts, weights)


@each_kind
def test_without_a_mask_it_is_vllm_s_own_arithmetic(renormalise: bool) -> None:
    weights, experts = choose(softmax(renormalise), logits(), UNMASKED, SELECTION, top_k=TOP_K)
    best, stock = torch.topk(logits(), TOP_K, dim=-1, sorted=False)
    own = torch.softmax(best, -1) if renormalise else (best - torch.logsumexp(logits(), -1, keepdim=True)).exp()
    assert torch.equal(experts, stock)
    assert torch.equal(weights, own)


@each_kind
@pytest.mark.parametrize("sliced", [True, False])
@pytest.mark.parametrize("count", [2, 7])
def test_it_is_what_the_other_engine_computes(renormalise: bool, sliced: bool, count: int) -> None:
    kept = random_kept(1, 1, EXPERTS, count)[0, 0]
    spec = softmax(renormalise)
    rules = LayerRules(masked(kept), sliced, [(min(TOP_K, count), ALL_TOKENS)])
    expected = route(spec, logits(), rules)
    cut = torch.full((TOKENS, 1), sliced)
    weights, experts = choose(spec, logits(), masked(kept), cut, top_k=TOP_K)
    assert not weights[~kept[experts]].any()
    assert torch.allclose(dense(weights, experts), dense(expected.weights, expected.ids), atol=1e-6)


def test_top_k_before_the_softmax_is_a_renormalised_softmax() -> None:
    later = RouterSpec(score="topk_softmax", renormalise=False)
    one, other = (choose(spec, logits(), UNMASKED, SELECTION, top_k=TOP_K) for spec in (later, softmax(True)))
    assert all(map(torch.equal, one, other))


def test_groups_hold_without_a_mask_what_vllm_computes() -> None:
    """Step by step as vLLM does it."""
    bias = 0.1 * torch.randn(EXPERTS, generator=torch.Generator().manual_seed(4))
    weights, experts = choose(GROUPED, logits(), UNMASKED, SELECTION, top_k=TOP_K, bias=bias)
    scores = logits().sigmoid()
    grouped = (scores + bias).view(TOKENS, 4, -1)
    best = grouped.topk(2, dim=-1)[0].sum(-1).topk(2, dim=-1, sorted=False)[1]
    inside = torch.zeros(TOKENS, 4).scatter_(1, best, 1)[..., None].expand_as(grouped).reshape(TOKENS, -1).bool()
    stock = torch.topk((scores + bias).masked_fill(~inside, -torch.inf), TOP_K, dim=-1, sorted=False)[1]
    own = scores.gather(1, stock)
    assert torch.equal(experts, stock)
    assert torch.equal(weights, own / own.sum(-1, keepdim=True) * 2.5)


def test_scores_instead_of_logits_where_vllm_has_a_router_of_groups() -> None:
    """DeepSeek-V2, greedy: one group, a softmax, a scale."""
    spec = RouterSpec(score="softmax", renormalise=False, scale=1.5)
    weights, experts = choose(spec, logits(), UNMASKED, SELECTION, top_k=TOP_K, of_scores=True)
    best, stock = torch.topk(torch.softmax(logits(), -1), TOP_K, dim=-1, sorted=False)
    assert torch.equal(experts, stock)
    assert torch.equal(weights, best * 1.5)


LIMITED = RouterSpec(score="softmax", renormalise=False, groups=4, chosen_groups=2, group_score="max", scale=1.5)
BIASED = RouterSpec(score="softmax", renormalise=True, bias=True, floor=1e-12)
BIASED_SIGMOID = RouterSpec(score="sigmoid", renormalise=True, bias=True)
PLAIN_SIGMOID = RouterSpec(score="sigmoid", renormalise=False)
MIXER = RouterSpec(score="sparsemixer", renormalise=False, jitter=0.01)
OTHERS = {
    "limited": LIMITED,
    "biased": BIASED,
    "biased sigmoid": BIASED_SIGMOID,
    "sigmoid": PLAIN_SIGMOID,
    "mixer": MIXER,
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("sliced", [True, False])
@pytest.mark.parametrize("count", [2, 7])
def test_other_routers_are_what_the_other_engine_computes(name: str, sliced: bool, count: int) -> None:
    """Also where fewer than top-k are kept: then those left out have no weight, and no part in the sum."""
    spec, top_k = OTHERS[name], 2 if name == "mixer" else TOP_K
    kept = random_kept(1, 1, EXPERTS, count)[0, 0]
    bias = 0.1 * torch.randn(EXPERTS, generator=torch.Generator().manual_seed(4)) if spec.bias else None
    rules = LayerRules(masked(kept), sliced, [(min(top_k, count), ALL_TOKENS)])
    expected = route(spec, logits(), rules, bias=bias)
    cut = torch.full((TOKENS, 1), sliced)
    weights, experts = choose(spec, logits(), masked(kept), cut, top_k=top_k, bias=bias)
    assert not weights[~kept[experts]].any()
    some = torch.zeros(TOKENS, EXPERTS + 1).scatter(-1, expected.ids, expected.weights)[:, :EXPERTS]
    assert torch.allclose(dense(weights, experts), some, atol=1e-6)
    assert dense(weights, experts).any()


def test_tokens_of_one_batch_obey_their_own_rows() -> None:
    kept = random_kept(3, 1, EXPERTS, 6)[:, 0]
    table, rows = torch.where(kept, 0.0, -torch.inf), torch.arange(TOKENS) % 3
    _, experts = choose(softmax(True), logits(), table[rows], SELECTION, top_k=TOP_K)
    assert kept[rows].gather(-1, experts).all()


@pytest.mark.parametrize(
    "spec",
    [softmax(True), softmax(False), GROUPED, *OTHERS.values()],
    ids=["renormalised", "softmax", "groups", *OTHERS],
)
def test_with_nothing_kept_weights_are_zero_and_slots_are_real(spec: RouterSpec) -> None:
    nothing = torch.full((TOKENS, EXPERTS), -torch.inf)
    bias = torch.zeros(EXPERTS) if spec.bias else None
    weights, experts = choose(spec, logits(), nothing, SELECTION, top_k=TOP_K, bias=bias)
    assert torch.equal(weights, torch.zeros(TOKENS, TOP_K))
    slots = slots_of(torch.full((EXPERTS + 1,), 5), experts)
    assert ((slots >= 0) & (slots < 5)).all()


def test_a_pick_without_slot_goes_to_a_slot_that_the_token_uses() -> None:
    lut = torch.tensor([7, 2, 7, 0, 7, 4, 7, 7])
    picks = torch.tensor([[0, 3, 5, 2], [5, 1, 6, 4], [1, 3, 5, 3]])
    assert slots_of(lut, picks).tolist() == [[0, 0, 4, 0], [4, 2, 2, 2], [2, 0, 4, 0]]


def test_rows_follow_the_order_of_the_step_and_end_with_row_0() -> None:
    rows = TokenRows(10, torch.device("cpu"))
    address = rows.of_token.data_ptr()
    for request, row in (("a", 3), ("b", 1), ("c", 2)):
        rows.learn(request, row)
    rows.fill(["b", "a"], [4, 2])
    assert rows.of_token.tolist() == [1, 1, 1, 1, 3, 3, 0, 0, 0, 0]
    rows.forget(["a", "never seen"])
    rows.fill(["c"], [1])
    assert rows.of_token.tolist() == [2] + [0] * 9
    assert rows.of_token.data_ptr() == address
    with pytest.raises(KeyError):
        rows.fill(["a"], [1])


def test_experts_a_token_uses_follow_its_request_and_the_rest_of_the_step_uses_all() -> None:
    rows = TokenRows(6, torch.device("cpu"), top_k=4)
    rows.learn("a", 1, 2)
    rows.learn("b", 0)
    rows.fill(["a", "b"], [2, 1])
    assert rows.active_of_token.tolist() == [2, 2, 4, 4, 4, 4]
    assert rows.counts == {"a": 2, "b": 1}


def tables_of(tmp_path: Path, rows: dict[int, tuple[int, str]]) -> SlotStore:
    """Every expert in a slot; a row keeps the first so many of each layer, under these semantics."""
    store = SlotStore(SlotShape.of(MemorySource(tiny_checkpoint(tmp_path)).manifest(), slots=EXPERTS, max_rows=4))
    placements = [(ExpertId(layer, e), (e + 3) % EXPERTS) for layer in range(store.num_layers) for e in range(EXPERTS)]
    store.publish(placements)
    for row, (count, semantics) in rows.items():
        kept = dict.fromkeys(range(store.num_layers), range(count))
        store.set_row(row, kept, semantics=semantics)  # type: ignore[arg-type]
    return store


def test_breadth_is_that_of_the_narrowest_row_and_follows_what_is_published(tmp_path: Path) -> None:
    rows = {0: (EXPERTS, "selection"), 1: (6, "selection"), 2: (5, "slice")}
    tables = tables_of(tmp_path, rows)
    assert tables.breadth(frozenset({0})) == (EXPERTS, True, False)
    assert tables.breadth(frozenset({0, 1})) == (6, False, False)
    assert tables.breadth(frozenset({1, 2})) == (5, False, None)
    assert tables.breadth(frozenset({3})).least == 0
    tables.retire([ExpertId(1, 0)])
    assert tables.breadth(frozenset({0})) == (EXPERTS - 1, False, False)
    assert tables.breadth(frozenset({2})) == (4, False, True)
    tables.publish([(ExpertId(1, 0), 3)])
    assert tables.breadth(frozenset({2})) == (5, False, True)


@pytest.mark.parametrize("count", [3, NOTED_TOKENS + 3])
def test_the_mass_of_a_request_is_the_sum_over_its_tokens_and_layers(tmp_path: Path, count: int) -> None:
    tables, spec = tables_of(tmp_path, {0: (EXPERTS, "selection"), 1: (6, "selection")}), softmax(True)
    rows, mass = TokenRows(100, torch.device("cpu"), TOP_K, tables.breadth), RetainedMass(spec, tables, 100)
    rows.learn("a", 1)
    rows.learn("b", 0)
    given = torch.randn(tables.num_layers, count, EXPERTS, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        rows.fill(["a", "b"], [count - 1, 1])
        mass.clear()
        for layer, each in enumerate(given):
            mass.add(layer, each, tables.mask[layer, rows.of_token[:count]])
        kept = given.softmax(-1)[:, : count - 1, :6].sum()
        assert mass.sums(rows) == pytest.approx([float(kept), tables.num_layers])
    rows.fill(["b"], [2])
    mass.clear()
    mass.add_all(2)
    assert mass.sums(rows) == [2.0]


@pytest.mark.parametrize("spec", [softmax(True), softmax(False), SIGMOID, BIASED], ids=str)
@pytest.mark.parametrize("sliced", [False, True])
@pytest.mark.parametrize("kept", [TOP_K, 9, EXPERTS])
def test_where_all_keep_enough_the_short_way_is_the_same_bit_for_bit(spec: RouterSpec, sliced: bool, kept: int) -> None:
    some = random_kept(1, TOKENS, EXPERTS, kept)[0]
    mask = torch.where(some, 0.0, -torch.inf)
    bias = torch.linspace(0, 0.1, EXPERTS) if spec.bias else None
    cut = torch.full((TOKENS, 1), sliced)
    for one in (mask, mask[:1].expand(TOKENS, -1)):
        weights, experts = choose(spec, logits(), one, cut, top_k=TOP_K, bias=bias)
        short = None if kept == EXPERTS else one[:1] if one is not mask else one
        found, chosen = choose_kept(spec, logits(), short, sliced=sliced, top_k=TOP_K, bias=bias)
        assert torch.equal(found, weights)
        assert torch.equal(chosen, experts)


def test_only_the_tokens_of_the_step_at_hand_have_enough(tmp_path: Path) -> None:
    tables = tables_of(tmp_path, {0: (TOP_K - 1, "selection"), 1: (TOP_K, "selection"), 2: (9, "slice")})
    rows = TokenRows(10, torch.device("cpu"), TOP_K, tables.breadth)
    for request, row, active in (("a", 1, None), ("b", 2, None), ("c", 0, None), ("d", 1, 1)):
        rows.learn(request, row, active)
    rows.fill(["a"], [2])
    assert (rows.only, rows.have_enough(2)) == (1, True)
    # Padding, or a trial run of vLLM's own.
    assert not rows.have_enough(3)
    for others in (["a", "b"], ["a", "c"], ["d"]):
        rows.fill(others, [1] * len(others))
        assert not rows.have_enough(len(others))


@pytest.mark.parametrize("spec", [softmax(True), softmax(False), GROUPED], ids=["renormalised", "softmax", "groups"])
def test_every_token_has_what_a_router_of_its_own_width_gives_it(spec: RouterSpec) -> None:
    kept = torch.where(random_kept(1, 1, EXPERTS, 12)[0, 0], 0.0, -torch.inf).expand(TOKENS, -1)
    bias = torch.linspace(0, 0.1, EXPERTS) if spec.bias else None
    widths, active = (1, 2, TOP_K), torch.tensor([1, 2, TOP_K])[torch.arange(TOKENS) % 3]
    weights, experts = choose_for(spec, logits(), kept, SELECTION, widths, active, top_k=TOP_K, bias=bias)
    for token, width in enumerate(active.tolist()):
        found, chosen = choose(spec, logits(), kept, SELECTION, top_k=width, bias=bias)
        assert torch.equal(weights[token, :width], found[token])
        assert torch.equal(experts[token, :width], chosen[token])
        assert not weights[token, width:].any()
        assert (experts[token, width:] == EXPERTS).all()


@pytest.mark.parametrize("spec", [softmax(True), GROUPED], ids=["softmax", "sigmoid"])
def test_the_retained_share_is_that_of_the_other_engine(spec: RouterSpec) -> None:
    kept = torch.where(random_kept(1, 1, EXPERTS, 12)[0, 0], 0.0, -torch.inf).expand(TOKENS, -1)
    theirs = route(spec, logits(), LayerRules(kept, False, ((TOP_K, ALL_TOKENS),)), bias=torch.zeros(EXPERTS)).mass
    assert theirs is not None
    torch.testing.assert_close(retained(spec, logits(), kept), theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_add_up_to_one(ranks: int) -> None:
    slots = torch.randint(11, (TOKENS, TOP_K), generator=torch.Generator().manual_seed(1))
    weights = torch.rand(TOKENS, TOP_K, generator=torch.Generator().manual_seed(2))
    whole, found = torch.zeros(TOKENS, 11), []
    whole.scatter_add_(-1, slots, weights)
    for rank in range(ranks):
        here = share(11, ranks, rank)
        mine, local = local_slots(here, weights, slots)
        assert bool(((local >= 0) & (local < len(here))).all())
        found.append(torch.zeros(TOKENS, len(here)).scatter_add_(-1, local, mine))
        # Where it has none of a token's own, a rank computes one that the token has here.
        has = ((slots >= here.start) & (slots < here.stop)).any(-1)
        own = (local[:, :, None] + here.start == slots[:, None, :]).any(-1).all(-1)
        assert bool((own | ~has).all())
        # A kernel that reads a map finds the same.
        mapped = slot_map(here, 16)[slots]
        assert torch.equal(mapped >= 0, (slots >= here.start) & (slots < here.stop))
        assert torch.equal(mapped[mapped >= 0], local[mapped >= 0].to(torch.int32))
    assert torch.equal(torch.cat(found, dim=-1), whole)
