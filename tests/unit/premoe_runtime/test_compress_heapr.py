"""What neurons cost is the paper's formula; shapes hold what the share pays for, and nothing that is kept changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.compression import job, tiny_data, tiny_pack

from premoe_runtime.compress.look import Arrays, Seen, look
from premoe_runtime.compress.methods import heapr
from premoe_runtime.compress.narrowing import Limits, Shape, narrowed, shape_of, shapes, worth
from premoe_runtime.compress.plan import Plan
from premoe_runtime.compress.run import run
from premoe_runtime.compress.share import Share
from premoe_runtime.compress.weights import PackWeights
from premoe_runtime.engines.hf.model import load_slot_model
from premoe_runtime.formats.arrays import F64
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.offline.profile.measure import make_full
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.storage import open_store


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> PackWeights:
    return tiny_pack(tmp_path_factory.mktemp("heapr"))


@dataclass
class Paper:
    """G = Σ g gᵀ and Σ a² of every expert, as the formula is written."""

    experts: int
    found: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]] = field(default_factory=dict)

    def see(self, seen: Seen) -> None:
        assert seen.gradient is not None
        for expert in range(self.experts):
            tokens, weights = seen.of(expert)
            if not len(tokens):
                continue
            own = (seen.gradient[tokens] * weights[:, None]).double()
            square = seen.activations(expert, seen.inputs[tokens]).double().square().sum(dim=0)
            gram, count = own.T @ own, len(tokens)
            if expert in self.found:
                before = self.found[expert]
                gram, square, count = before[0] + gram, before[1] + square, before[3] + count
            self.found[expert] = gram, square, seen.module.down_proj[seen.lut[expert]].double(), count

    def result(self) -> Arrays:
        return {
            str(expert): (0.5 * square / count * ((gram / count) @ down * down).sum(dim=0) * count).numpy()
            for expert, (gram, square, down, count) in self.found.items()
        }


def test_a_neurons_worth_is_the_formula_that_the_paper_writes(old: PackWeights, tmp_path: Path) -> None:
    task = job(heapr.METHOD, old, tmp_path / "work", data=tiny_data(tmp_path, ("digits",)))
    experts = old.manifest.num_experts
    paper = look(task, lambda layer: Paper(experts), settings="paper", objective="gradient")
    expected = []
    for layer in range(old.manifest.num_layers):
        expected.append(np.zeros((experts, old.experts(0).width)))
        for expert, costs in paper.layer(layer).items():
            expected[layer][int(expert)] = np.sqrt(costs)
    total = sum(float(each.sum()) for each in expected)
    for found, wanted in zip(heapr.atoms(task), expected, strict=True):
        np.testing.assert_allclose(found, wanted / total, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("shared", [False, True])
def test_the_whole_share_is_the_model_bit_for_bit(old: PackWeights, tmp_path: Path, shared: bool) -> None:
    task = job(heapr.METHOD, old, tmp_path / "work", 1.0, data=tiny_data(tmp_path), shared=shared)
    new = PackWeights(open_pack(run(heapr.METHOD, task, open_store(str(tmp_path / "out"))).url))
    assert new.manifest.weights_id == old.manifest.weights_id
    for layer in range(old.manifest.num_layers):
        for name in ("gate", "up", "down"):
            assert torch.equal(getattr(new.experts(layer), name), getattr(old.experts(layer), name))
        assert torch.equal(new.router(layer).weight, old.router(layer).weight)


def test_a_narrowed_pack_holds_the_best_neurons_of_the_best_experts(old: PackWeights, tmp_path: Path) -> None:
    task = job(heapr.METHOD, old, tmp_path / "work", 0.25, data=tiny_data(tmp_path), experts="50%")
    reader = open_pack(run(heapr.METHOD, task, open_store(str(tmp_path / "out"))).url)
    new, values = PackWeights(reader), heapr.atoms(task)
    for layer, each in enumerate(values):
        ranked = -np.sort(-each, axis=1)[:, :16].sum(axis=1)
        kept = sorted(np.argsort(-ranked, kind="stable")[:8].tolist())
        assert torch.equal(new.router(layer).weight, old.router(layer).weight[kept])
        for place, expert in enumerate(kept):
            neurons = np.sort(np.argsort(-each[expert], kind="stable")[:16])
            assert torch.equal(new.experts(layer).gate[place], old.experts(layer).gate[expert][neurons])
            assert torch.equal(new.experts(layer).down[place], old.experts(layer).down[expert][:, neurons])
    model = load_slot_model(reader, slots=8, max_rows=2)
    make_full(model)
    assert bool(model.model(input_ids=torch.arange(6)[None]).logits.isfinite().all())


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[int], int, Share, Limits]:
    groups = draw(st.sampled_from([1, 1, 2, 4]))
    experts = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    limits = Limits(draw(st.integers(1, 5)), groups * draw(st.integers(1, 2)), groups)
    return [groups * count for count in experts], draw(st.integers(1, 24)), Share(draw(st.floats(0.02, 1))), limits


@given(problems())
def test_shapes_hold_all_that_the_share_pays_for_and_no_more(problem: tuple[list[int], int, Share, Limits]) -> None:
    experts, width, share, limits = problem
    try:
        found = shapes(experts, width, share, limits)
    except InvalidInput:
        smallest = limits.least * min(limits.multiple, width)
        assert any(limits.least > count or share.part * count * width < smallest + width for count in experts)
        return
    if share.part == 1:
        assert found == (Shape(width, tuple(experts)),)
    for shape in found:
        assert shape.width == width or shape.width % limits.multiple == 0
        for count, all_of_it in zip(shape.counts, experts, strict=True):
            room = share.part * all_of_it * width
            assert limits.least <= count <= all_of_it
            assert count % limits.groups == 0
            assert count * shape.width <= room + 1e-6 * width
            assert count == all_of_it or (count + limits.groups) * shape.width > room - 1e-6 * width


def neurons_of(experts: Sequence[int], width: int, seed: int) -> list[F64]:
    draw = np.random.default_rng(seed)
    return [np.asarray(draw.random((count, width))) for count in experts]


def held(plan: Plan) -> list[dict[int, set[int]]]:
    """Neurons of kept experts, layer by layer."""
    everything = range(plan.width)
    return [
        {int(made.members[0]): set(everything if made.neurons is None else made.neurons[0].tolist()) for made in layer}
        for layer in plan.layers
    ]


@given(problems(), st.booleans(), st.integers(0, 99))
def test_what_stays_does_not_depend_on_how_experts_and_neurons_are_numbered(
    problem: tuple[list[int], int, Share, Limits], shared: bool, seed: int
) -> None:
    experts, width, share, limits = problem
    limits, shared = Limits(1, limits.least), shared and len(set(experts)) == 1
    if min(experts) < limits.least:
        return
    try:
        shape = shapes(experts, width, share, limits)[-1]
    except InvalidInput:
        return
    neurons = neurons_of(experts, width, seed)
    plan = narrowed(neurons, shape, limits, shared=shared)
    assert plan.digest == narrowed(neurons, shape, limits, shared=shared).digest
    assert sum(plan.experts) == shape.total
    assert min(plan.experts) >= limits.least
    kept = sum(
        neurons[layer][expert, place]
        for layer, one in enumerate(held(plan))
        for expert, places in one.items()
        for place in places
    )
    assert worth(neurons, shape, limits, shared=shared) == pytest.approx(kept)
    draw = np.random.default_rng(seed + 1)
    orders = [(draw.permutation(count), draw.permutation(width)) for count in experts]
    mixed = [layer[rows][:, columns] for layer, (rows, columns) in zip(neurons, orders, strict=True)]
    for before, after, (rows, columns) in zip(
        held(plan), held(narrowed(mixed, shape, limits, shared=shared)), orders, strict=True
    ):
        assert before == {int(rows[one]): {int(columns[each]) for each in places} for one, places in after.items()}


def test_groups_of_a_router_keep_equally_many_experts() -> None:
    limits = Limits(1, 4, groups=2)
    neurons = [np.concatenate([np.full((4, 2), 5.0), np.ones((4, 2))])]
    plan = narrowed(neurons, Shape(2, (4,)), limits)
    assert [int(made.members[0]) for made in plan.layers[0]] == [0, 1, 4, 5]


def test_what_it_cannot_do_is_said_before_anything_is_computed(old: PackWeights, tmp_path: Path) -> None:
    data, store = tiny_data(tmp_path), open_store(str(tmp_path / "out"))
    wrong: dict[str, tuple[float, dict[str, object]]] = {
        "a larger --budget or a smaller --multiple": (0.02, {}),
        "another --experts": (0.25, {"experts": "10%"}),
        "--experts: .*give one such as 25% or 0.25; or auto": (0.25, {"experts": "half"}),
        "give 1 or more": (0.25, {"multiple": -8}),
    }
    for message, (share, settings) in wrong.items():
        task = job(heapr.METHOD, old, tmp_path / "none", share, data=data, **settings)
        with pytest.raises(InvalidInput, match=message) as caught:
            run(heapr.METHOD, task, store)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "none").exists()
    narrow = shape_of([16], 32, Share(0.5), Share(1.0), Limits(8, 4))
    assert narrow == Shape(16, (16,))


def test_families_that_cannot_be_narrowed_are_refused_first(tmp_path: Path) -> None:
    jamba = tiny_pack(tmp_path, "jamba")
    task = job(heapr.METHOD, jamba, tmp_path / "none", 0.5, data=tiny_data(tmp_path), experts="100%")
    with pytest.raises(InvalidInput, match="only methods that keep the width"):
        run(heapr.METHOD, task, open_store(str(tmp_path / "out")))
    assert not (tmp_path / "none").exists()
