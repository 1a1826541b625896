"""Fine-tunes of one base in one pack: one with the coefficient 1 is itself, learning brings the mix nearer to all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.compression import job, tiny_data, tiny_pack
from torch import Tensor

from premoe_runtime.compress import coefficients
from premoe_runtime.compress.coefficients import Learning, Lessons, Mixed, learnt
from premoe_runtime.compress.config import width_of
from premoe_runtime.compress.method import Job
from premoe_runtime.compress.methods.expert_merging import METHOD, shares
from premoe_runtime.compress.mixing import Mix, laid_out, size_of
from premoe_runtime.compress.result import Compressed, write
from premoe_runtime.compress.run import plan, run
from premoe_runtime.compress.weights import ExpertWeights, PackWeights, RouterWeights
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.packs.progress import Silent
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.storage import Store, open_store

TASKS = ("capitals", "digits")
LEARNING = Learning(steps=4, rate=0.05, temperature=1.0, gamma=0.0)


def fine_tune(old: PackWeights, folder: Path, seed: int, scale: float = 0.2) -> PackWeights:
    """The base with noise of its own standard deviation times ``scale`` on every weight."""

    def moved(name: str, value: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(hash((seed, len(name), value.numel())) % 2**31)
        return value.float() + scale * torch.randn(value.shape, generator=generator) * value.float().std()

    def experts(layer: int) -> ExpertWeights:
        whole = old.experts(layer)
        return ExpertWeights(*(moved(f"{layer}", part) for part in (whole.gate, whole.up, whole.down)))

    names = [name for name in old.tensors if name not in old.model.routers and old.tensors[name].shape != ()]
    new = Compressed(
        experts=old.manifest.layer_experts,
        width=width_of(old.model),
        router=lambda layer: RouterWeights(moved("router", old.router(layer).weight)),
        weights=experts,
        key=f"{seed}",
        tensors={name: partial(lambda name: moved(name, old.tensor(name)), name) for name in names},
    )
    facts = {"method": "tuned", "seed": seed}
    return PackWeights(open_pack(write(old, new, facts, open_store(str(folder)), Silent()).url))


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> PackWeights:
    pack: PackWeights = tiny_pack(tmp_path_factory.mktemp("base"), num_experts=8)
    return pack


@pytest.fixture(scope="module")
def tuned(old: PackWeights, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, PackWeights]:
    folder = tmp_path_factory.mktemp("tuned")
    return {task: fine_tune(old, folder, seed) for seed, task in enumerate(TASKS)}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "out"))


def task_of(old: PackWeights, tuned: Mapping[str, PackWeights], folder: Path, **rest: Any) -> Job:
    named = tuple(f"{name}={pack.reader.url}" for name, pack in tuned.items())
    data = rest.pop("data", None) or tiny_data(folder, tuple(tuned), 3)
    return job(METHOD, old, folder / "work", share=1.0, data=data, tuned=named, **rest)


def test_one_fine_tune_with_the_coefficient_one_is_that_fine_tune_bit_for_bit(
    old: PackWeights, tuned: Mapping[str, PackWeights], store: Store, tmp_path: Path
) -> None:
    one = {"digits": tuned["digits"]}
    written = run(METHOD, task_of(old, one, tmp_path, steps=0, start=1.0), store)
    assert written.manifest.weights_id == one["digits"].manifest.weights_id != old.manifest.weights_id


def test_coefficients_of_nothing_are_the_base(old: PackWeights, tuned: Mapping[str, PackWeights], store: Store) -> None:
    layout = laid_out(old)
    mix = Mix(old, tuple(tuned.values()), layout, torch.zeros(2, layout.total))
    written = write(old, mix.compressed(), {"method": "mix"}, store, Silent())
    assert written.manifest.weights_id == old.manifest.weights_id


def mix_of(old: PackWeights, tuned: Mapping[str, PackWeights], counts: tuple[int, ...] | None = None) -> Mix:
    layout = laid_out(old, counts)
    return Mix(old, tuple(tuned.values()), layout, torch.full((len(tuned), layout.total), 0.5))


def test_the_gradient_of_a_coefficient_is_how_the_loss_changes_with_it(tmp_path: Path) -> None:
    base = tiny_pack(tmp_path, num_experts=4)  # every token uses all four: no choice makes the loss jump
    tuned = {task: fine_tune(base, tmp_path / "tuned", seed) for seed, task in enumerate(TASKS)}
    task, mix = task_of(base, tuned, tmp_path), mix_of(base, tuned, (2, 3))
    lessons, model = Lessons(task, tuned), Mixed(mix, task)

    def loss(alpha: Tensor) -> float:
        model.take(replace(mix, alpha=alpha))
        return model.backward(lessons, 2.0)

    loss(mix.alpha)
    gradient = model.gradient()
    step = 2e-3
    for place in ((0, 0), (1, 1), (0, 3), (1, mix.layout.total - 1)):
        moved = torch.zeros_like(mix.alpha)
        moved[place] = step
        along = (loss(mix.alpha + moved) - loss(mix.alpha - moved)) / (2 * step)
        assert float(gradient[place]) == pytest.approx(along, rel=0.05, abs=1e-3)


def test_learning_brings_the_mix_nearer_and_a_killed_run_goes_on_to_the_same(
    old: PackWeights, tuned: Mapping[str, PackWeights], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, mix = task_of(old, tuned, tmp_path), mix_of(old, tuned)
    lessons = Lessons(task, tuned)
    found = learnt(task, mix, lessons, LEARNING, stage="")
    model = Mixed(mix, task)
    losses = []
    for one in (mix, found):
        model.take(one)
        losses.append(model.backward(lessons, LEARNING.temperature))
    assert losses[1] < losses[0]

    class Crash(BaseException):
        pass

    steps = list[int]()
    save = coefficients._save

    def dying(*args: Any) -> None:
        save(*args)
        steps.append(args[-1])
        if args[-1] == 2:
            raise Crash

    monkeypatch.setattr(coefficients, "_save", dying)
    other = replace(task, work=tmp_path / "other")
    lessons = Lessons(other, tuned)
    with pytest.raises(Crash):
        learnt(other, mix, lessons, LEARNING, stage="")
    assert torch.equal(learnt(other, mix, lessons, LEARNING, stage="").alpha, found.alpha)
    assert steps == [1, 2, 3, 4]


def test_the_order_of_fine_tunes_decides_nothing(
    old: PackWeights, tuned: Mapping[str, PackWeights], tmp_path: Path
) -> None:
    found = []
    for names in (TASKS, TASKS[::-1]):
        some = {name: tuned[name] for name in names}
        made = plan(METHOD, task_of(old, some, tmp_path / names[0], data=tiny_data(tmp_path, names, 2), steps=2))
        found.append(made.facts["coefficients"])
    for name in TASKS:
        first, second = (one[name]["alpha"] for one in found)  # type: ignore[index]
        assert first == pytest.approx(second, abs=1e-3)


def test_chunks_learn_apart_and_the_pack_says_what_was_learnt(
    old: PackWeights, tuned: Mapping[str, PackWeights], store: Store, tmp_path: Path
) -> None:
    task = task_of(old, tuned, tmp_path, steps=2, chunks=3.0, rate=0.05)
    made = plan(METHOD, task)
    learned = made.facts["coefficients"]["digits"]  # type: ignore[index]
    assert len(learned["alpha"]) == sum(learned["chunks"]) > old.model.num_blocks + 1
    assert len(set(learned["alpha"])) > old.model.num_blocks + 1
    assert made.facts["settings"]["tuned"]["digits"] == tuned["digits"].manifest.model_id  # type: ignore[index]
    new = PackWeights(open_pack(write(old, made, {"method": "test"}, store, Silent()).url))
    assert torch.equal(new.experts(1).gate, made.weights(1).gate)
    assert torch.equal(new.router(0).weight, made.router(0).weight)


@given(counts=st.tuples(st.integers(1, 9), st.integers(1, 9)))
@settings(max_examples=20, deadline=None)
def test_chunks_cover_every_row_in_order(old: PackWeights, counts: tuple[int, int]) -> None:
    layout = laid_out(old, counts)
    assert layout.counts == (*counts, 1)
    assert layout.total == sum(counts) + 1 == len(layout.owners)
    for part, names in enumerate(layout.parts):
        for name in names:
            chunks = layout.chunks[name]
            assert len(chunks) == size_of(old, name)[0]
            assert (layout.owners[chunks] == part).all()
            assert (chunks.diff() >= 0).all()
    assert layout.chunks.keys() == {*old.tensors, "experts.0", "experts.1"}


@given(
    importance=st.lists(st.floats(0, 1e6), min_size=1, max_size=20),
    budget=st.floats(0, 20),
    kappa=st.floats(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_important_layers_get_more_chunks_and_all_get_one(importance: list[float], budget: float, kappa: float) -> None:
    found = shares(torch.tensor(importance), budget, kappa)
    assert min(found) >= 1
    assert sum(found) <= budget * len(found) + len(found) + 1e-6
    order = sorted(range(len(found)), key=lambda layer: importance[layer])
    assert [found[layer] for layer in order] == sorted(found)


def test_what_is_no_fine_tune_of_the_base_is_said_in_one_line(
    old: PackWeights, tuned: Mapping[str, PackWeights], tmp_path: Path
) -> None:
    other = {
        "its numbers of experts are others": tiny_pack(tmp_path / "count", num_experts=16),
        "is of another shape": tiny_pack(tmp_path / "shape", num_experts=8, hidden_size=32),
        "it is of family mixtral": tiny_pack(tmp_path / "family", "mixtral"),
        "trained from another start": fine_tune(old, tmp_path / "far", 9, scale=50.0),
        "the pack itself": old,
    }
    for reason, pack in other.items():
        with pytest.raises(InvalidInput, match=reason):
            plan(METHOD, task_of(old, {"digits": pack}, tmp_path))
    alone = {"digits": tuned["digits"]}
    with pytest.raises(InvalidInput, match="'capitals' is named by only one of"):
        plan(METHOD, task_of(old, alone, tmp_path, data=tiny_data(tmp_path, TASKS)))
    for wrong in ({"rate": 0.0}, {"prompts": 0}, {"temperature": float("nan")}, {"gamma": -1.0}, {"chunks": -1.0}):
        with pytest.raises(InvalidInput):
            plan(METHOD, task_of(old, alone, tmp_path, **wrong))
    with pytest.raises(InvalidInput, match="give --tuned NAME=PACK"):
        plan(METHOD, job(METHOD, old, tmp_path, data=tiny_data(tmp_path)))
