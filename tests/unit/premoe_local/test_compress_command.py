"""`premoe compress`: a table of what a method found out, and only the options that mean something for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from premoe_local.cli import command as premoe
from support.profiles import packed_model, write_examples


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return packed_model(tmp_path_factory.mktemp("compress"))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(premoe, [str(argument) for argument in arguments])


def test_the_factors_tried_are_a_table_and_json(store: str, tmp_path: Path) -> None:
    data = write_examples(tmp_path / "digits.jsonl", "digits", 8)
    own = ("--find", "--margin", "1000", "--work", tmp_path / "work")
    asked = ("compress", "uncurl", store, "--data", f"digits={data}", "--to", tmp_path / "out", *own)
    told = run(*asked)
    assert told.exit_code == 0, told.output
    assert "factor" in told.stdout
    assert "of experts became" in told.stdout
    found = json.loads(run(*asked, "--json").stdout)
    assert found["already_written"]
    assert [one["factor"] for one in found["tried"]] == [2 ** (power + 1) for power in range(len(found["tried"]))]
    assert all(one["low"] <= one["rise"] <= one["high"] for one in found["tried"])


def test_a_method_that_keeps_every_byte_has_no_budget(store: str) -> None:
    assert "--budget" not in run("compress", "expert-merging", "--help").stdout
    assert "--budget" in run("compress", "uncurl", "--help").stdout
    refused = run("compress", "expert-merging", store, "--to", "x", "--budget", "50%")
    assert "No such option" in refused.output
