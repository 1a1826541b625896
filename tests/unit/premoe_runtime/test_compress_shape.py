"""Training under a Dirichlet prior: routers take its shape, and a weight of zero is plain training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.compression import job, tiny_data, tiny_pack

from premoe_runtime.compress.methods.shape import METHOD, Shaped
from premoe_runtime.compress.objectives import answers_loss
from premoe_runtime.compress.run import run
from premoe_runtime.compress.student import Lesson, Student
from premoe_runtime.compress.trainer import samples_of
from premoe_runtime.compress.weights import PackWeights
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.storage import open_store


def prior(old: PackWeights, folder: Path) -> float:
    """What the prior costs a model a token, on the data it is trained on."""
    task = job(METHOD, old, folder / "none", data=tiny_data(folder))
    student = Student(old, threads=1)
    lesson = Lesson.of(samples_of(task, student))
    with torch.no_grad():
        passed = student.run(lesson)
        return float(Shaped(2.0, 1.0)(passed, lesson) - answers_loss(passed, lesson)) / len(lesson.wanted)


def test_routers_take_the_shape_and_every_expert_stays(tmp_path: Path) -> None:
    old = tiny_pack(tmp_path)
    made = dict[float, PackWeights]()
    for weight in (0.0, 10.0):
        settings: dict[str, Any] = {"steps": 12, "rate": 1e-2, "tokens": 400, "dirichlet": 2.0, "shaping": weight}
        task = job(METHOD, old, tmp_path / f"work-{weight}", data=tiny_data(tmp_path), train="routers", **settings)
        made[weight] = PackWeights(open_pack(run(METHOD, task, open_store(str(tmp_path / "out"))).url))
        assert made[weight].manifest.layer_experts == old.manifest.layer_experts
        assert torch.equal(made[weight].experts(0).gate, old.experts(0).gate)
        assert not torch.equal(made[weight].router(0).weight, old.router(0).weight)
    assert prior(made[10.0], tmp_path) < 0.8 * min(prior(made[0.0], tmp_path), prior(old, tmp_path))


def test_routers_without_a_softmax_are_refused(tmp_path: Path) -> None:
    old = tiny_pack(tmp_path, "glm4_moe")
    with pytest.raises(InvalidInput, match="no Dirichlet describes them"):
        METHOD.compress(job(METHOD, old, tmp_path, data=tiny_data(tmp_path)))


def test_a_run_that_was_killed_while_its_pack_was_written_takes_up_what_was_trained(tmp_path: Path) -> None:
    old = tiny_pack(tmp_path)
    task = job(METHOD, old, tmp_path / "work", data=tiny_data(tmp_path), steps=2, tokens=200, train="routers")
    first = METHOD.compress(task)
    assert METHOD.compress(task).key == first.key
