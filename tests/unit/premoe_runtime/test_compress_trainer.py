"""A student learns, a killed training goes on to the same bits, and what was trained is what the pack holds."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.compression import job, tiny_data, tiny_pack

from premoe_runtime.compress import trainer
from premoe_runtime.compress.method import Job
from premoe_runtime.compress.methods.random import METHOD
from premoe_runtime.compress.objectives import Distilled, answers_loss
from premoe_runtime.compress.result import write
from premoe_runtime.compress.student import Lesson, Part, Student
from premoe_runtime.compress.trained import keep, kept
from premoe_runtime.compress.trainer import Training, draws, rate_at, samples_of, train
from premoe_runtime.compress.weights import PackWeights
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.packs.progress import Silent
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.storage import open_store

SMALL = Training(steps=6, rate=3e-3, tokens=200, every=2)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> PackWeights:
    return tiny_pack(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def task(old: PackWeights, tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("task")
    return job(METHOD, old, folder / "work", data=tiny_data(folder))


def weights(student: Student) -> dict[str, torch.Tensor]:
    return {name: student.tensor(name).clone() for name in student.names}


@pytest.mark.parametrize(("parts", "rank"), [(("experts", "routers"), 0), (("experts", "routers", "rest"), 2)])
def test_a_student_learns_the_answers_and_moves_nothing_else(
    old: PackWeights, task: Job, tmp_path: Path, parts: tuple[Part, ...], rank: int
) -> None:
    student = Student(old, parts, rank=rank, threads=1)
    rest = old.tensor("model.embed_tokens.weight")
    before = weights(student)
    losses = train(student, samples_of(task, student), answers_loss, SMALL, tmp_path)
    assert len(losses) == SMALL.steps
    assert losses[-1] < losses[0]
    assert all(not torch.equal(before[name], now) for name, now in weights(student).items())
    assert torch.equal(student.slots.model.get_input_embeddings().weight, rest)
    assert ("model.embed_tokens.weight" in student.names) == ("rest" in parts and not rank)


def test_a_killed_training_goes_on_to_the_same_bits(
    old: PackWeights, task: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Student(old, ("experts", "routers"), threads=1)
    samples = samples_of(task, whole)
    losses = train(whole, samples, answers_loss, SMALL, tmp_path / "whole")

    class Crash(BaseException):
        pass

    step = trainer._step

    def dying(*arguments: object) -> float:
        if arguments[-1] == 3:
            raise Crash
        return step(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer, "_step", dying)
    with pytest.raises(Crash):
        train(Student(old, ("experts", "routers"), threads=1), samples, answers_loss, SMALL, tmp_path / "killed")
    monkeypatch.undo()
    again = Student(old, ("experts", "routers"), threads=1)
    assert train(again, samples, answers_loss, SMALL, tmp_path / "killed") == losses
    found = weights(again)
    assert all(torch.equal(tensor, found[name]) for name, tensor in weights(whole).items())


def test_a_student_of_another_training_starts_anew(old: PackWeights, task: Job, tmp_path: Path) -> None:
    short = Training(steps=1, tokens=100)
    student = Student(old, ("routers",), threads=1)
    samples = samples_of(task, student)
    first = train(student, samples, answers_loss, short, tmp_path)
    other = train(Student(old, ("routers",), threads=1), samples, answers_loss, short, tmp_path, purpose="other")
    assert first == other
    assert len(other) == 1


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_what_was_trained_is_what_the_pack_holds(family: str, task: Job, tmp_path: Path) -> None:
    old = tiny_pack(tmp_path, family)
    student = Student(old, ("experts", "routers", "rest"), rank=0 if family == "gpt_oss" else 2, threads=1)
    train(student, samples_of(task, student)[:4], answers_loss, Training(steps=2, tokens=100), tmp_path / "training")
    keep(student, tmp_path / "kept")
    written = write(old, kept(tmp_path / "kept", old), {"method": "test"}, open_store(str(tmp_path / "to")), Silent())
    new = PackWeights(open_pack(written.url))
    for name in student.names:
        if not name.startswith("experts."):
            assert torch.equal(new.tensor(name), student.tensor(name))
    for layer in range(old.manifest.num_layers):
        experts = new.experts(layer)
        for field in old.manifest.layout.fields:
            found = (
                student.tensor(f"experts.{layer}.{field.name}")
                if not student.rank
                or field.name
                in (
                    "gate_up",
                    "down",
                )
                else old.experts(layer).field(field.name)
            )
            assert torch.equal(experts.field(field.name), found)
    lesson = Lesson.of(samples_of(task, student)[:2])
    with torch.no_grad():
        again = Student(new, threads=1).run(lesson)
        torch.testing.assert_close(again.logits, student.run(lesson).logits, rtol=1e-4, atol=1e-4)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(old: PackWeights, task: Job) -> None:
    student = Student(old, ("experts",), threads=1)
    lesson = Lesson.of(samples_of(task, student)[:3])
    loss = Distilled(Student(old, threads=1), hidden=1.0)(student.run(lesson), lesson)
    assert float(loss.detach()) == pytest.approx(0, abs=1e-4)
    passed = student.run(lesson)
    assert len(passed.hidden) == len(passed.routers) == 2
    assert passed.logits.shape[0] == len(lesson.wanted)


def test_a_loss_that_is_no_number_ends_the_training_in_one_line(old: PackWeights, task: Job, tmp_path: Path) -> None:
    student = Student(old, ("experts",), threads=1)
    with pytest.raises(InvalidInput, match="in step 1 of 6; give a lower --rate") as caught:
        train(
            student, samples_of(task, student), lambda passed, lesson: passed.logits.sum() * math.nan, SMALL, tmp_path
        )
    assert caught.value.reason == "LOSS_NOT_FINITE"
    with pytest.raises(InvalidInput, match="--rate is 0"):
        Training(steps=1, rate=0)


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=20),
    tokens=st.integers(1, 60),
    seed=st.integers(0, 5),
)
def test_every_sample_is_drawn_once_a_round_and_a_step_has_its_tokens(
    lengths: list[int], tokens: int, seed: int
) -> None:
    found, drawn = list[int](), draws(lengths, tokens, seed)
    while len(found) < 3 * len(lengths):
        step = next(drawn)
        assert len(step) == 1 or sum(lengths[index] for index in step) <= tokens
        found += step
    for start in range(0, 3 * len(lengths), len(lengths)):
        assert sorted(found[start : start + len(lengths)]) == list(range(len(lengths)))


@given(steps=st.integers(1, 50), warmup=st.floats(0, 1), decay=st.sampled_from(["cosine", "linear"]))
def test_the_rate_rises_then_falls_and_is_never_above_its_setting(
    steps: int, warmup: float, decay: trainer.Decay
) -> None:
    training = Training(steps=steps, rate=1.0, warmup=warmup, decay=decay)
    rates = [rate_at(training, step) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
