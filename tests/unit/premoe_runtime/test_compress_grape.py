"""The pair that differs least anywhere is merged; layers that become too uneven wait; nothing depends on numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.compression import job, tiny_data, tiny_pack
from torch import Tensor

from premoe_runtime.compress.methods import grape, select
from premoe_runtime.compress.outputs import cka, differences, mse
from premoe_runtime.compress.redundancy import GAMMA, Clusters, merged
from premoe_runtime.compress.run import run
from premoe_runtime.compress.weights import PackWeights
from premoe_runtime.formats.arrays import F64
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.storage import open_store


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> PackWeights:
    return tiny_pack(tmp_path_factory.mktemp("grape"))


def problem(layers: int, experts: int, seed: int) -> tuple[list[F64], list[F64]]:
    """Differences, all unlike each other, and use."""
    draw = np.random.default_rng(seed)
    apart = [np.triu(draw.random((experts, experts)), 1) for _ in range(layers)]
    return [each + each.T for each in apart], [draw.random(experts) + 0.1 for _ in range(layers)]


sizes = st.tuples(st.integers(1, 4), st.integers(2, 9), st.integers(0, 99))
gammas = st.sampled_from([0.0, 0.5, GAMMA, 1.0])


@given(sizes, st.integers(1, 2), st.integers(0, 40), gammas, st.booleans())
def test_sizes_are_exact_and_no_layer_goes_below_what_a_token_needs(
    size: tuple[int, int, int], least: int, more: int, gamma: float, weighted: bool
) -> None:
    layers, experts, seed = size
    apart, use = problem(layers, experts, seed)
    total = min(layers * least + more, layers * experts)
    found = merged(apart, use if weighted else None, total, least, gamma)
    assert sum(map(len, found)) == total
    assert found == merged(apart, use if weighted else None, total, least, gamma)
    for layer in found:
        assert len(layer) >= least
        assert sorted(expert for cluster in layer for expert in cluster) == list(range(experts))


@given(sizes, gammas, st.booleans(), st.integers(0, 99))
def test_clusters_do_not_depend_on_how_experts_are_numbered(
    size: tuple[int, int, int], gamma: float, weighted: bool, mixing: int
) -> None:
    layers, experts, seed = size
    apart, use = problem(layers, experts, seed)
    draw, total = np.random.default_rng(mixing), layers * (experts + 1) // 2
    orders = [draw.permutation(experts) for _ in range(layers)]
    found = merged(apart, use if weighted else None, total, 1, gamma)
    mixed = merged(
        [each[order][:, order] for each, order in zip(apart, orders, strict=True)],
        [each[order] for each, order in zip(use, orders, strict=True)] if weighted else None,
        total,
        1,
        gamma,
    )
    for one, other, order in zip(found, mixed, orders, strict=True):
        renamed = {frozenset(int(order[expert]) for expert in cluster) for cluster in other}
        assert {frozenset(cluster) for cluster in one} == renamed


@given(sizes)
def test_where_every_layer_waits_after_a_merge_layers_take_turns(size: tuple[int, int, int]) -> None:
    layers, experts, seed = size
    apart, use = problem(layers, experts, seed)
    counts = [len(each) for each in merged(apart, use, layers * experts * 2 // 3 + layers, 1, 1.0)]
    assert max(counts) - min(counts) <= 1


def test_the_most_redundant_layer_gives_until_it_is_uneven() -> None:
    apart, _ = problem(2, 8, seed=3)
    apart[0] = 0.01 * apart[0]
    alike, _ = merged(apart, None, 9, 1, 0.0)
    assert len(alike) == 1
    waits = merged(apart, None, 9, 1, 0.6)
    shares = np.array([len(cluster) / 8 for cluster in waits[0]])
    assert 1 < len(waits[0]) < len(waits[1])
    assert -(shares * np.log(shares)).sum() < 0.6 * np.log(8)
    idle = merged(apart, [np.array([1.0] * 8), np.array([1e-9] * 8)], 9, 1, 0.0)
    assert len(idle[1]) == 1  # what nobody uses costs nothing


def test_outputs_are_compared_by_distance_and_by_form() -> None:
    torch.manual_seed(0)
    inputs, weights = torch.randn(40, 5), torch.randn(4, 6, 5)
    weights[1] = -2 * weights[0]
    weights[3] = weights[2]

    def outputs(expert: int, given: Tensor) -> Tensor:
        return given @ weights[expert].T

    each = torch.stack([outputs(expert, inputs) for expert in range(4)]).double()
    far = (each[:, None] - each[None]).square().sum(dim=(2, 3))
    expected = far / (2 * each.square().sum(dim=(1, 2)).mean())
    np.testing.assert_allclose(mse(outputs, 4, inputs), expected.numpy(), rtol=1e-4, atol=1e-5)
    centred = each - each.mean(dim=1, keepdim=True)
    crossed = torch.einsum("ath,bti->abhi", centred, centred).square().sum(dim=(2, 3))
    norms = crossed.diagonal().sqrt()
    form = cka(outputs, 4, inputs)
    np.testing.assert_allclose(form, (1 - crossed / norms[:, None] / norms).numpy(), rtol=1e-4, atol=1e-5)
    assert form[0, 1] == pytest.approx(0, abs=1e-5)  # scales are left out
    assert mse(outputs, 4, inputs)[2, 3] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("merge", ["keep", "mean"])
def test_the_whole_share_is_the_model_bit_for_bit(old: PackWeights, tmp_path: Path, merge: str) -> None:
    task = job(grape.METHOD, old, tmp_path / "work", 1.0, data=tiny_data(tmp_path), merge=merge)
    new = PackWeights(open_pack(run(grape.METHOD, task, open_store(str(tmp_path / "out"))).url))
    assert new.manifest.weights_id == old.manifest.weights_id
    for layer in range(old.manifest.num_layers):
        for name in ("gate", "up", "down"):
            assert torch.equal(getattr(new.experts(layer), name), getattr(old.experts(layer), name))
        assert torch.equal(new.router(layer).weight, old.router(layer).weight)


def test_merged_packs_hold_their_clusters_and_selection_takes_their_counts(old: PackWeights, tmp_path: Path) -> None:
    data, store = tiny_data(tmp_path), open_store(str(tmp_path / "out"))
    task = job(grape.METHOD, old, tmp_path / "work", 0.5, data=data, tokens=32)
    new = PackWeights(open_pack(run(grape.METHOD, task, store).url))
    apart, use = differences(task, "mse", 32)
    clusters: tuple[Clusters, ...] = merged(apart, use, 16, old.model.top_k, GAMMA)
    assert new.manifest.layer_experts == tuple(map(len, clusters))
    for layer, (each, weights) in enumerate(zip(clusters, use, strict=True)):
        kept = [max(cluster, key=lambda expert: weights[expert]) for cluster in each]
        assert torch.equal(new.experts(layer).gate, old.experts(layer).gate[kept])
        assert torch.equal(new.router(layer).weight, old.router(layer).weight[kept])
    mean = job(grape.METHOD, old, tmp_path / "work", 0.5, data=data, tokens=32, merge="mean")
    averaged = PackWeights(open_pack(run(grape.METHOD, mean, store).url))
    assert averaged.manifest.layer_experts == new.manifest.layer_experts
    chosen = job(select.METHOD, old, tmp_path / "select", 0.5, data=data, score="counts", allocation="grape")
    counts = PackWeights(open_pack(run(select.METHOD, chosen, store).url)).manifest.layer_experts
    assert counts == tuple(map(len, merged(*differences(chosen), 16, old.model.top_k, GAMMA)))


def test_what_it_cannot_do_is_said_in_one_line(old: PackWeights, tmp_path: Path) -> None:
    grouped = tiny_pack(tmp_path, "deepseek_v3")
    wrong: tuple[tuple[str, PackWeights, float, dict[str, object]], ...] = (
        ("clusters do not keep to them", grouped, 0.5, {}),
        ("give 0 to 1", old, 0.5, {"gamma": 1.5}),
        ("give 2 or more", old, 0.5, {"tokens": 1}),
        ("give a larger --budget", old, 0.1, {}),
    )
    for message, pack, share, settings in wrong:
        task = job(grape.METHOD, pack, tmp_path / "none", share, data=tiny_data(tmp_path), **settings)
        with pytest.raises(InvalidInput, match=message) as caught:
            run(grape.METHOD, task, open_store(str(tmp_path / "out")))
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "none").exists()
