"""Merged by what the task's tokens want: identity at 100 %, copies merge first, the threshold is what was measured."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.compression import job, tiny_data, tiny_pack

from premoe_runtime.compress import threshold
from premoe_runtime.compress.methods.uncurl import METHOD, clustered, likeness
from premoe_runtime.compress.run import plan, run
from premoe_runtime.compress.weights import PackWeights
from premoe_runtime.formats.arrays import F64
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.storage import Store, open_store


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> PackWeights:
    return tiny_pack(tmp_path_factory.mktemp("uncurl"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "out"))


def wanted(seed: int, experts: int) -> tuple[F64, F64]:
    draw = np.random.default_rng(seed)
    logits = draw.normal(size=(64, experts)) @ draw.normal(size=(experts, experts))
    return np.cov(logits.T), draw.random(experts) + 0.01


@given(seed=st.integers(0, 999), data=st.data())
@settings(max_examples=30, deadline=None)
def test_the_numbers_of_experts_decide_nothing(seed: int, data: st.DataObject) -> None:
    covariance, use = wanted(seed, 8)
    order = np.random.default_rng(seed + 1).permutation(8)
    count = data.draw(st.integers(1, 8))
    found = {frozenset(made.members.tolist()) for made in clustered(covariance, use, count)}
    moved = clustered(covariance[np.ix_(order, order)], use[order], count)
    assert {frozenset(order[made.members].tolist()) for made in moved} == found
    for made in moved:
        assert made.shares.sum() == pytest.approx(1)
        assert (np.diff(made.shares) <= 0).all()  # the most used first: others are aligned to it


def test_experts_wanted_together_and_experts_nobody_uses_cost_nothing_to_merge() -> None:
    covariance, use = wanted(0, 6)
    covariance[5], covariance[:, 5] = covariance[4], covariance[:, 4]
    covariance[5, 5] = covariance[4, 4]
    use[2] = 0.0
    found = likeness(covariance, use)
    assert found[4, 5] == 1
    assert (found[2] == 1).all()
    assert (found == found.T).all()
    assert (found[0, [1, 3, 4, 5]] < 1).all()
    clusters = [set(made.members.tolist()) for made in clustered(covariance, use, 4)]
    assert any({4, 5} <= cluster for cluster in clusters)
    assert all(cluster != {2} for cluster in clusters)


def test_all_of_the_bytes_is_the_model_itself_bit_for_bit(old: PackWeights, store: Store, tmp_path: Path) -> None:
    task = job(METHOD, old, tmp_path / "work", share=1.0, data=tiny_data(tmp_path))
    written = run(METHOD, task, store)
    assert written.manifest.weights_id == old.manifest.weights_id


def test_half_of_the_experts_is_written_twice_alike_and_holds_the_means(
    old: PackWeights, store: Store, tmp_path: Path
) -> None:
    task = job(METHOD, old, tmp_path / "work", data=tiny_data(tmp_path))
    first = run(METHOD, task, store)
    again = run(METHOD, replace(task, work=tmp_path / "other"), open_store(str(tmp_path / "again")))
    assert first.manifest.model_id == again.manifest.model_id
    new, made = PackWeights(open_pack(first.url)), plan(METHOD, task)
    half = old.manifest.num_experts // 2
    assert new.manifest.layer_experts == (half,) * old.manifest.num_layers
    for layer in range(old.manifest.num_layers):
        assert torch.equal(new.router(layer).weight, made.router(layer).weight)
        assert torch.equal(new.experts(layer).down, made.weights(layer).down)
        clusters = made.facts["clusters"][layer]  # type: ignore[index]
        assert sorted(chain.from_iterable(clusters)) == list(range(old.manifest.num_experts))
        for row, members in enumerate(clusters):
            if len(members) == 1:
                assert torch.equal(new.experts(layer).gate[row], old.experts(layer).gate[members[0]])


def test_factors_are_tried_until_top_k_and_the_last_within_the_margin_is_taken(
    old: PackWeights, tmp_path: Path
) -> None:
    task = job(METHOD, old, tmp_path / "work", data=tiny_data(tmp_path, count=8), find=True, margin=100.0)
    made = plan(METHOD, task)
    tried = made.facts["tried"]
    assert [(one["factor"], one["held"]) for one in tried] == [(2, True), (4, True)]  # type: ignore[attr-defined]
    assert made.facts["factor"] == 4
    assert made.experts == (old.manifest.num_experts // 4,) * old.manifest.num_layers
    assert not list((tmp_path / "work").glob("factor-*"))


@pytest.mark.parametrize(("rise", "held"), [(-1.0, True), (0.05, True), (0.3, False)])
def test_a_factor_holds_where_the_whole_interval_of_the_rise_does(rise: float, held: bool) -> None:
    tokens = np.full(20, 4)
    before = {"a": (np.linspace(1, 9, 20), tokens), "b": (np.linspace(2, 5, 20), tokens)}
    after = {task: (nats + 4 * rise, tokens) for task, (nats, tokens) in before.items()}
    found = threshold.judged(2, before, after, 0.1)
    assert found.held == held
    assert found.rise == pytest.approx(rise)  # the same for every example: the interval has no width
    assert found.low == pytest.approx(rise) == found.high
    noisy = {task: (nats * np.linspace(0, 2.1, 20), tokens) for task, (nats, tokens) in before.items()}
    wide = threshold.judged(2, before, noisy, 0.1)
    assert wide.low < wide.rise < wide.high
    assert wide.held == (wide.high <= 0.1)


def test_the_examples_that_judge_teach_nothing(old: PackWeights, tmp_path: Path) -> None:
    task = job(METHOD, old, tmp_path, data=tiny_data(tmp_path, count=9))
    teach, judge = threshold.parted(task)
    for name, examples in task.data.items():
        assert [one.line for one in judge.data[name]] == [examples[3].line, examples[7].line]
        assert len(teach.data[name]) + len(judge.data[name]) == 9


def test_what_cannot_be_merged_is_said_in_one_line(old: PackWeights, tmp_path: Path) -> None:
    data = tiny_data(tmp_path)
    with pytest.raises(InvalidInput, match="give at least 8"):
        plan(METHOD, job(METHOD, old, tmp_path / "w", data=data, find=True))
    with pytest.raises(InvalidInput, match="no rise of a loss"):
        plan(METHOD, job(METHOD, old, tmp_path / "w", data=data, find=True, margin=float("nan")))
    with pytest.raises(InvalidInput, match="give a larger --budget"):
        plan(METHOD, job(METHOD, old, tmp_path / "w", data=data, share=0.1))
    grouped = tiny_pack(tmp_path / "grouped", "deepseek_v3")
    with pytest.raises(InvalidInput, match="clusters do not keep to them"):
        plan(METHOD, job(METHOD, grouped, tmp_path / "w", data=data))
