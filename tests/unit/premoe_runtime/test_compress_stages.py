"""SlimMoE and MC-Suite: cuts and trainings in turns, each of the last one's pack; a killed run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.compression import job, tiny_data, tiny_pack

from premoe_runtime.compress import stages, trainer
from premoe_runtime.compress.method import Job, Method
from premoe_runtime.compress.methods import mc_suite, slim
from premoe_runtime.compress.run import plan, run
from premoe_runtime.compress.weights import PackWeights
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.offline.profile.scores import find
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.storage import open_store

SLIM = {"steps": 2, "tokens": 150, "stages": 2}
DROP = {"budget_tokens": 150, "tokens": 150, "rounds": 2, "score": "counts"}


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> PackWeights:
    return tiny_pack(tmp_path_factory.mktemp("stages"))


def made(method: Method, old: PackWeights, folder: Path, **settings: Any) -> tuple[Job, PackWeights]:
    task = job(method, old, folder / "work", data=tiny_data(folder, count=3), **settings)
    return task, PackWeights(open_pack(run(method, task, open_store(str(folder / "to"))).url))


def same(one: PackWeights, other: PackWeights) -> bool:
    return one.manifest.model_id == other.manifest.model_id


@pytest.mark.parametrize(("method", "settings"), [(slim.METHOD, SLIM), (mc_suite.METHOD, DROP)])
def test_a_killed_run_goes_on_to_the_same_pack(
    method: Method, settings: dict[str, Any], old: PackWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crash(BaseException):
        pass

    (tmp_path / "whole").mkdir()
    _, whole = made(method, old, tmp_path / "whole", **settings)
    task = job(method, old, tmp_path / "work", data=tiny_data(tmp_path, count=3), **settings)
    trainings, train = list[int](), trainer.train

    def dying(*arguments: object, **rest: object) -> list[float]:
        trainings.append(1)
        if len(trainings) == 2:
            raise Crash
        return train(*arguments, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(stages, "train", dying)
    with pytest.raises(Crash):
        plan(method, task)
    packs = [path.parent.parent.name for path in task.work.glob("step-*/pack/models")]
    assert packs == ["step-002"], "the last finished one stays"
    again = run(method, task, open_store(str(tmp_path / "to")))
    assert len(trainings) == 3
    assert same(PackWeights(open_pack(again.url)), whole)


def test_slim_keeps_every_expert_and_narrows_all_to_one_width(old: PackWeights, tmp_path: Path) -> None:
    task, new = made(slim.METHOD, old, tmp_path, steps=0, stages=1)
    assert new.manifest.layer_experts == old.manifest.layer_experts
    whole = old.experts(0)
    narrow = new.experts(0)
    assert (whole.width, narrow.width) == (32, 16)
    columns = {tuple(column) for column in whole.down[3].T.tolist()}
    assert {tuple(column) for column in narrow.down[3].T.tolist()} < columns
    assert torch.equal(new.router(0).weight, old.router(0).weight)
    assert task.share.part == 0.5


def test_neurons_that_give_more_stay_and_their_column_counts() -> None:
    given = np.array([[4.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    down = torch.ones(2, 3, 4)
    down[0, :, 1], down[0, :, 0] = 3.0, 0.1
    down[1, :, 3] = 2.0
    assert slim.neurons(given, down, 2) == [[1, 2], [0, 3]]


def test_tuning_changes_experts_and_routers_and_one_shot_has_the_same_counts(old: PackWeights, tmp_path: Path) -> None:
    for name in ("rounds", "once"):
        (tmp_path / name).mkdir()
    _, rounds = made(mc_suite.METHOD, old, tmp_path / "rounds", **DROP)
    _, once = made(mc_suite.METHOD, old, tmp_path / "once", **DROP, one_shot=True)
    assert rounds.manifest.layer_experts == once.manifest.layer_experts == (8, 8)
    assert not same(rounds, once)
    rows = {tuple(row) for row in old.router(1).weight.tolist()}
    assert not rows & {tuple(row) for row in rounds.router(1).weight.tolist()}
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(rounds.tensor(name), old.tensor(name))


def test_all_sixteen_criteria_of_mc_suite_are_scores() -> None:
    weights, inference = ("ews", "rwn", "wsr", "ewn"), ("euf", "ecc", "evtc", "ets")
    activations, gradients = ("eas", "eae", "eao", "ean"), ("egs", "ege", "ego", "egn")
    found = {find(name).name for name in (*weights, *inference, *activations, *gradients)}
    assert len(found) == 16
    assert all("2504.05586" in find(name).source for name in found)


def test_settings_without_sense_are_refused(old: PackWeights, tmp_path: Path) -> None:
    data = tiny_data(tmp_path, count=3)
    wrong: list[tuple[Method, dict[str, Any], str]] = [
        (slim.METHOD, {"stages": 0}, "--stages is 0; give 1 or more"),
        (slim.METHOD, {"share": 0.05}, "give a larger --budget, or drop"),
        (slim.METHOD, {"rate": -1.0}, "--rate is -1"),
        (mc_suite.METHOD, {"rounds": -1}, "--rounds is -1"),
        (mc_suite.METHOD, {"score": "nothing"}, "is not known"),
        (mc_suite.METHOD, {"share": 0.1}, "give a larger --budget"),
    ]
    for method, settings, line in wrong:
        with pytest.raises(InvalidInput, match=line):
            plan(method, job(method, old, tmp_path, data=data, **settings))


@given(
    layers=st.lists(st.tuples(st.integers(1, 64), st.integers(0, 64)), min_size=1, max_size=4), rounds=st.integers(0, 9)
)
def test_rounds_drop_down_to_the_budget_and_never_nothing(layers: list[tuple[int, int]], rounds: int) -> None:
    after = [kept for kept, _ in layers]
    before = [kept + more for kept, more in layers]
    found = mc_suite.dropping(before, after, rounds)
    assert found[-1] == tuple(after)
    previous = tuple(before)
    for counts in found:
        assert all(now <= then for now, then in zip(counts, previous, strict=True))
        assert counts != previous or before == after
        previous = counts
    most = max(more for _, more in layers)
    assert len(found) == max(1, min(rounds or most, most))


@given(part=st.floats(0.125, 1), stages_=st.integers(1, 6))
def test_widths_fall_to_the_budget_in_rows_that_kernels_take(old: PackWeights, part: float, stages_: int) -> None:
    found = slim.widths(old, part, stages_)
    assert found == sorted(set(found), reverse=True)
    assert len(found) <= stages_
    assert all(width % 4 == 0 and width <= 32 for width in found)
    assert found[-1] <= 32 * part + 1e-6 < found[-1] + 4 + 1e-6
