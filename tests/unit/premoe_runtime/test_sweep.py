import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.profiles import ALPHABETS
from support.sources import MemorySource
from support.tiny import tiny_checkpoint

from premoe_runtime.engines.hf.model import SlotModel
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.errors import CorruptData, InvalidInput
from premoe_runtime.formats.pattern import GENERALIST_TASK
from premoe_runtime.offline.calibration import Example, Message
from premoe_runtime.offline.evaluation.data import TaskData
from premoe_runtime.offline.evaluation.exam import Answers, Examiner
from premoe_runtime.offline.evaluation.figures import figures
from premoe_runtime.offline.evaluation.journal import Journal
from premoe_runtime.offline.evaluation.outputs import Asked
from premoe_runtime.offline.evaluation.plan import Cell, Scope
from premoe_runtime.offline.evaluation.sweep import Results, sweep
from premoe_runtime.offline.profile.measure import load_full_model
from premoe_runtime.storage import open_store

BUDGET = Budget(2, 4)
SCOPE = Scope((BUDGET,), ("impact", "counts"), BUDGET, spare=1)
SEEDS, ASKED = 2, 5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SlotModel:
    return load_full_model(MemorySource(tiny_checkpoint(tmp_path_factory.mktemp("sweep"))))


def examples(task: str, first: int, count: int) -> tuple[Example, ...]:
    letters = ALPHABETS[task]
    texts = ["".join(letters[(3 * n + k * k) % len(letters)] for k in range(8)) for n in range(first, first + count)]
    return tuple(Example((Message("user", f"{text} {n}"),), "yes", n) for n, text in enumerate(texts, first))


def tasks(*names: str) -> dict[str, TaskData]:
    return {
        task: TaskData(tuple(examples(task, 100 * seed, 20) for seed in range(SEEDS)), examples(task, 500, ASKED))
        for task in names
    }


def run(model: SlotModel, folder: Path, scope: Scope = SCOPE) -> Results:
    folder.mkdir(exist_ok=True)
    journal = Journal(folder / "cells.jsonl")
    return sweep(model, tasks("digits", "vowels"), scope, store=open_store(str(folder)), journal=journal)


@pytest.fixture(scope="module")
def folder(model: SlotModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished evaluation."""
    folder = tmp_path_factory.mktemp("finished")
    run(model, folder)
    return folder


def refuse(*arguments: object) -> Answers:
    raise AssertionError("measured again")


def test_a_finished_evaluation_measures_nothing_again(
    model: SlotModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Examiner, "_answers", refuse)
    monkeypatch.setattr("premoe_runtime.offline.evaluation.sweep.measure_profile", refuse)
    results = run(model, folder)
    assert set(results.full) == {"digits", "vowels"}
    # Of two tasks: 2 scores x 2 splits, 3 static sets, and for each owner served and without, by seed.
    assert {cell.way for cell in results.cells} == {"own", "static", "served", "without"}
    assert len({c for c in results.cells if c.way == "own"}) == 2 * SEEDS * 4
    assert len({c for c in results.cells if c.way == "static"}) == 2 * SEEDS * 3
    assert len({c for c in results.cells if c.way == "without"}) == 2 * SEEDS * 2


def test_a_stopped_evaluation_goes_on_behind_its_last_cell(
    model: SlotModel, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    answers = Examiner._answers

    def until(limit: int) -> None:
        def counted(self: Examiner, asked: Asked, *others: Any) -> Answers:
            if len(measured) == limit:
                raise KeyboardInterrupt
            measured.append(asked.task)
            return answers(self, asked, *others)

        monkeypatch.setattr(Examiner, "_answers", counted)

    until(5)
    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path)
    with (tmp_path / "cells.jsonl").open("ab") as file:
        file.write(b'{"key": "torn')
    until(10_000)
    resumed, whole = run(model, tmp_path), run(model, folder)
    lines = (folder / "cells.jsonl").read_bytes().splitlines()
    assert len(measured) == len(lines)
    assert figures([resumed]) == figures([whole])
    assert all(json.loads(line) for line in (tmp_path / "cells.jsonl").read_bytes().splitlines())


def test_every_cell_is_what_its_experts_answer(model: SlotModel, folder: Path) -> None:
    results = run(model, folder)
    examiner = Examiner(model, {"digits": tasks("digits")["digits"].test})
    every_expert = Asked("digits", np.ones((2, 16), np.bool_), 4)
    full, every = examiner.answers([Asked("digits", None, 4), every_expert])
    assert (results.full["digits"].nll == full.nll).all()
    assert full.kl.tolist() == [0] * ASKED
    assert every.nll == pytest.approx(full.nll)
    assert every.kl == pytest.approx(0, abs=1e-6)
    own = Cell("digits", "own", "impact", "shared", BUDGET, 0)
    assert (results.cells[own].kl > 1e-4).all()
    # A quarter of the experts, the best ones; of a score that does not compare between layers nothing is said.
    assert 0.3 < results.held[own] < 1
    assert {cell.score for cell in results.held} == {"impact"}


def test_prompts_get_the_experts_that_recognition_names(model: SlotModel, folder: Path) -> None:
    results = run(model, folder)
    owners = [owner for each in results.decisions.values() for owner in each]
    assert len(owners) == 2 * SEEDS * ASKED
    assert set(owners) <= {"digits", "vowels", GENERALIST_TASK}
    assert owners.count("digits") > 0
    document = figures([results])
    assert document["recognition"]["digits"].keys() == {"own", "generalist", "other"}
    assert sum(document["recognition"]["digits"].values()) == pytest.approx(100, abs=0.05)
    json.dumps(document, allow_nan=False)


def test_a_wider_scope_reuses_what_was_measured(
    model: SlotModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len((folder / "cells.jsonl").read_bytes().splitlines())
    asked: list[Sequence[int]] = []
    answers = Examiner.answers

    def counted(self: Examiner, wanted: Sequence[Asked], **watched: Any) -> Iterator[Answers]:
        asked.extend(one.kept.sum(axis=1).tolist() for one in wanted if one.kept is not None)
        return answers(self, wanted, **watched)

    monkeypatch.setattr(Examiner, "answers", counted)
    run(model, folder, Scope((BUDGET, Budget(2, 8)), ("impact", "counts"), BUDGET, spare=1))
    assert len((folder / "cells.jsonl").read_bytes().splitlines()) == before + len(asked)
    assert {sum(counts) for counts in asked} == {2 * 8, 2 * 9}


def test_answers_that_are_no_numbers_are_refused(model: SlotModel) -> None:
    examiner = Examiner(model, {"digits": examples("digits", 0, 2)})
    head = model.model.get_output_embeddings().weight
    kept = head.detach().clone()
    try:
        with torch.no_grad():
            head[0] = torch.nan
        with pytest.raises(CorruptData, match=r"digits:[01]: the model's answer is not a number"):
            list(examiner.answers([Asked("digits", None, 4)]))
    finally:
        with torch.no_grad():
            head.copy_(kept)


def test_unknown_scores_are_refused_before_anything_is_measured(model: SlotModel, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="score 'impakt' is not known; did you mean impact"):
        run(model, tmp_path, Scope((BUDGET,), ("impakt",)))
    assert (tmp_path / "cells.jsonl").read_bytes() == b""
