"""What is seen of a model layer by layer is what profiles add up, forward and back, and a killed look goes on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from support.compression import job, tiny_data, tiny_pack

from premoe_runtime.compress.look import Arrays, Looked, Seen, look
from premoe_runtime.compress.method import Job
from premoe_runtime.compress.methods.random import METHOD
from premoe_runtime.compress.weights import PackWeights
from premoe_runtime.offline.profile.gradient import Objective
from premoe_runtime.offline.profile.measure import load_blocks, measure_profile
from premoe_runtime.offline.profile.scores import scores


class Crash(BaseException):
    """The process ends here."""


@dataclass
class Sums:
    """Counts, and Σ |∂L/∂y · g f|, of every expert."""

    experts: int
    count: np.ndarray = field(init=False)
    along: np.ndarray = field(init=False)
    tokens: int = 0

    def __post_init__(self) -> None:
        self.count, self.along = np.zeros(self.experts), np.zeros(self.experts)

    def see(self, seen: Seen) -> None:
        self.tokens += len(seen.ids)
        rebuilt = torch.zeros_like(seen.output)
        for expert in sorted(set(seen.ids.flatten().tolist())):
            tokens, weights = seen.of(expert)
            self.count[expert] += len(tokens)
            outputs = weights[:, None] * seen.outputs(expert, seen.inputs[tokens])
            rebuilt.index_add_(0, tokens, outputs)
            if seen.gradient is not None:
                self.along[expert] += float((seen.gradient[tokens] * outputs).sum(dim=-1).abs().sum())
        torch.testing.assert_close(rebuilt, seen.output, rtol=1e-4, atol=1e-5)
        assert set(seen.tasks.tolist()) <= {0, 1}

    def result(self) -> Arrays:
        return {"count": self.count, "along": self.along, "tokens": np.array(self.tokens)}


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> PackWeights:
    return tiny_pack(tmp_path_factory.mktemp("look"))


@pytest.fixture
def task(old: PackWeights, tmp_path: Path) -> Job:
    return job(METHOD, old, tmp_path / "work", data=tiny_data(tmp_path))


def looked(task: Job, objective: Objective | None) -> Looked:
    experts = task.old.manifest.num_experts
    return look(task, lambda layer: Sums(experts), settings="sums", objective=objective, max_tokens=128)


@pytest.mark.parametrize("objective", [None, "loss"])
def test_a_look_sees_what_a_profile_adds_up(task: Job, objective: Objective | None) -> None:
    found = looked(task, objective)
    model = load_blocks(task.old.reader, threads=1)
    examples = [one for pool in task.data.values() for one in pool]
    profile = measure_profile(model, examples, task="both", scores=("counts", "taylor"), spool=task.work / "spool")
    for layer in range(task.old.manifest.num_layers):
        arrays = found.layer(layer)
        np.testing.assert_allclose(
            arrays["count"] / arrays["tokens"], scores(profile.state, "counts")[layer], rtol=1e-6
        )
        if objective:
            expected = scores(profile.state, "taylor")[layer]
            np.testing.assert_allclose(arrays["along"] / arrays["tokens"], expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("objective", [None, "loss"])
def test_a_killed_look_goes_on_with_the_layer_it_was_at(
    task: Job, objective: Objective | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = looked(task, objective)
    expected = [whole.layer(layer)["along"] for layer in range(task.old.manifest.num_layers)]
    again = job(METHOD, task.old, task.work / "again", data=task.data)
    keep, kept = Looked.keep, list[int]()

    def dying(self: Looked, layer: int, arrays: Arrays) -> None:
        if kept:
            raise Crash
        kept.append(layer)
        keep(self, layer, arrays)

    monkeypatch.setattr(Looked, "keep", dying)
    with pytest.raises(Crash):
        looked(again, objective)
    later = list[int]()

    def noting(self: Looked, layer: int, arrays: Arrays) -> None:
        later.append(layer)
        keep(self, layer, arrays)

    monkeypatch.setattr(Looked, "keep", noting)
    found = looked(again, objective)
    assert kept[0] not in later
    for layer, along in enumerate(expected):
        np.testing.assert_array_equal(found.layer(layer)["along"], along)
