"""Answers of a model that is read layer by layer: those of the same model in memory, whatever the disk makes of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.family_rows import ROWS
from support.profiles import write_examples
from support.tiny import prune, tiny_checkpoint

from premoe_runtime.engines.hf.blocks import BlockModel
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.errors import Conflict, CorruptData
from premoe_runtime.offline.calibration import Example, read_calibration
from premoe_runtime.offline.evaluation.data import TaskData
from premoe_runtime.offline.evaluation.exam import Answers, Examiner
from premoe_runtime.offline.evaluation.figures import figures
from premoe_runtime.offline.evaluation.journal import FIELDS, Journal
from premoe_runtime.offline.evaluation.outputs import Asked
from premoe_runtime.offline.evaluation.plan import Scope
from premoe_runtime.offline.evaluation.sweep import sweep
from premoe_runtime.offline.profile.measure import load_blocks, load_full_model
from premoe_runtime.offline.profile.spool import open_spool
from premoe_runtime.packs.reader import PackReader, open_pack
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.storage import open_store

TASKS = ("capitals", "digits")


def packed(folder: Path, checkpoint: Path) -> PackReader:
    return open_pack(write_pack(open_source(str(checkpoint)), open_store((folder / "packs").as_uri())).url)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> PackReader:
    folder = tmp_path_factory.mktemp("stream")
    return packed(folder, tiny_checkpoint(folder))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Example]]:
    folder = tmp_path_factory.mktemp("data")
    return {task: read_calibration(write_examples(folder / f"{task}.jsonl", task, 6)) for task in TASKS}


def asked(reader: PackReader) -> list[Asked]:
    """Tasks whole, and under two sets of experts that differ, with fewer of them a token, too."""
    manifest = reader.manifest()
    draw = np.random.default_rng(0)
    drawn = []
    for share in (0.5, 0.8):
        kept = manifest.exists & (draw.random(manifest.exists.shape) < share)
        kept[:, : manifest.top_k] = True
        drawn.append(kept)
    sets = [(None, manifest.top_k), (drawn[0], manifest.top_k), (drawn[1], max(1, manifest.top_k - 1))]
    return [Asked(task, kept, active) for task in TASKS for kept, active in sets]


def same(streamed: list[Answers], whole: list[Answers]) -> None:
    assert len(streamed) == len(whole)
    for one, other in zip(streamed, whole, strict=True):
        assert one.right.tolist() == other.right.tolist()
        for name in FIELDS:
            tolerance = 1e-6 if name == "mass" else 0  # masses are added up layer by layer, or at once
            assert getattr(one, name) == pytest.approx(getattr(other, name), abs=tolerance, rel=0), name


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3", "gpt_oss", "jamba", "phimoe"])
def test_layer_by_layer_gives_the_same_answers(tmp_path: Path, family: str, data: dict[str, list[Example]]) -> None:
    row = ROWS[family]
    reader = packed(tmp_path, tiny_checkpoint(tmp_path, family=row.family, **row.overrides))
    whole = list(Examiner(load_full_model(reader), data, max_tokens=128).answers(asked(reader)))
    told: list[float] = []
    blocks = load_blocks(reader)
    examiner = Examiner(blocks, data, max_tokens=128, spool=tmp_path / "spool")
    same(list(examiner.answers(asked(reader), advance=told.append)), whole)
    assert sum(told) == pytest.approx(6 * len(whole))
    assert [float(one.kl.max()) > 1e-4 for one in whole] == [False, True, True] * len(TASKS)
    assert not any(file.is_file() for file in (tmp_path / "spool").rglob("*"))
    assert len({layer for layer, _ in blocks.store.resident()}) <= 1
    # What was run last leaves no mark.
    same(list(examiner.answers(asked(reader)[:1])), whole[:1])


def test_layers_of_different_widths_and_bfloat16(tmp_path: Path, data: dict[str, list[Example]]) -> None:
    reader = packed(tmp_path, prune(tiny_checkpoint(tmp_path, dtype=torch.bfloat16), (9, 16)))
    whole = Examiner(load_full_model(reader, dtype="bfloat16"), data).answers(asked(reader))
    streamed = Examiner(load_blocks(reader, dtype="bfloat16"), data, spool=tmp_path / "spool").answers(asked(reader))
    same(list(streamed), list(whole))


def test_a_small_disk_takes_several_passes(
    reader: PackReader, data: dict[str, list[Example]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = list(Examiner(load_full_model(reader), data).answers(asked(reader)))
    loaded: list[int] = []
    load = BlockModel.load

    def counted(self: BlockModel, block: int) -> None:
        loaded.append(block)
        load(self, block)

    monkeypatch.setattr(BlockModel, "load", counted)
    examiner = Examiner(load_blocks(reader), data, spool=tmp_path / "spool")

    def passes(free: int) -> int:
        loaded.clear()
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
        same(list(examiner.answers(asked(reader))), whole)
        return loaded.count(0)

    padded = max(sum(one.batch.valid.numel() for one in each) for each in examiner._batches.values())
    one = padded * reader.manifest().hidden_size * 4
    assert passes(1 << 40) == 1
    assert 1 < passes(5 * one) < len(whole)
    # A single one goes alone, whatever room there is for it.
    assert passes(3 * one) == len(whole)


def test_what_a_killed_run_left_is_another_s(
    reader: PackReader, data: dict[str, list[Example]], tmp_path: Path
) -> None:
    folder = tmp_path / f"{reader.manifest().weights_id[:16]}-evaluation"
    with open_spool(folder, "a killed run's", 1) as spool:
        spool.write("0-0", torch.ones(3))
        with pytest.raises(Conflict, match="another process measures"):
            list(Examiner(load_blocks(reader), data, spool=tmp_path).answers(asked(reader)[:1]))
    spool.write("0-1", torch.ones(3))
    whole = Examiner(load_full_model(reader), data).answers(asked(reader)[:2])
    same(list(Examiner(load_blocks(reader), data, spool=tmp_path).answers(asked(reader)[:2])), list(whole))
    assert not any(file.is_file() for file in folder.rglob("*"))


def test_a_broken_pass_leaves_nothing_on_the_disk(
    reader: PackReader, data: dict[str, list[Example]], tmp_path: Path
) -> None:
    model = load_blocks(reader)
    examiner = Examiner(model, data, spool=tmp_path / "spool")
    with torch.no_grad():
        model.model.get_input_embeddings().weight[:] = torch.nan
    with pytest.raises(CorruptData, match="the model's answer is not a number"):
        list(examiner.answers(asked(reader)))
    assert not any(file.is_file() for file in (tmp_path / "spool").rglob("*"))


def test_a_whole_evaluation_gives_the_same_figures(
    reader: PackReader, data: dict[str, list[Example]], tmp_path: Path
) -> None:
    calibration = {
        task: read_calibration(write_examples(tmp_path / f"{task}.jsonl", task, 40), skip=6) for task in TASKS
    }
    tasks = {task: TaskData((tuple(calibration[task][:20]),), tuple(data[task])) for task in TASKS}
    scope = Scope((Budget(2, 4),), ("impact", "counts"), Budget(2, 4), spare=1)

    def run(name: str, model: Any) -> dict[str, Any]:
        folder = tmp_path / name
        folder.mkdir()
        results = sweep(
            model,
            tasks,
            scope,
            store=open_store(str(folder)),
            journal=Journal(folder / "cells.jsonl"),
            spool=tmp_path / "spool",
        )
        return figures([results])

    def rounded(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: rounded(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [rounded(each) for each in value]
        return round(value, 3) if isinstance(value, float) else value

    assert rounded(run("streamed", load_blocks(reader))) == rounded(run("whole", load_full_model(reader)))
