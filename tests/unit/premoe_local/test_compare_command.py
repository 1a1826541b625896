"""`premoe compress compare`: bad input before any work, and a report of a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from premoe_local.cli import command as premoe
from premoe_local.compress.compare_report import rows, sections
from support.profiles import packed_model, write_examples

from premoe_runtime.compress.compare.making import make_here


def run(*arguments: object) -> Result:
    return CliRunner().invoke(premoe, ["compress", "compare", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds store/ (a packed model of 16 experts a layer, top-4) and <task>.jsonl files of 30 examples."""
    folder = tmp_path_factory.mktemp("compare")
    packed_model(folder)
    for task in ("digits", "vowels"):
        write_examples(folder / f"{task}.jsonl", task, 30)
    return folder


def data(folder: Path) -> list[str]:
    return [part for task in ("digits", "vowels") for part in ("--data", f"{task}={folder / task}.jsonl")]


SMALL = ["--seeds", "1", "--documents", "20", "--prompts", "6", "--method", "select:score=counts"]


def test_a_model_becomes_a_page_a_picture_and_json(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("premoe_runtime.compress.compare.making.make_apart", make_here)
    out = tmp_path / "report"
    asked = [folder / "store", "--out", out, *data(folder), *SMALL, "--budgets", "50%, 0.1"]
    result = run(*asked, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document == json.loads((out / "compression.json").read_text())
    assert [one["percent"] for one in document["budgets"]] == [50, 10]
    names = [one["name"] for one in document["budgets"][0]["entrants"]]
    assert names[2:] == ["random", "select", "select:score=counts"]
    assert document["model"]["probe_bytes"] > 0
    page = (out / "compression.md").read_text()
    blocks = [[line for line in part.splitlines() if line.startswith("|")] for part in page.split("\n\n")]
    for block in filter(None, blocks):
        assert len({line.count("|") for line in block}) == 1
    assert "None" not in page
    assert "| `random` | – | 10% of 16 experts a layer are 1, but every token uses 4; give a larger --budget |" in page
    assert (out / "compression.png").read_bytes().startswith(b"\x89PNG")
    assert "![](compression.png)" in page
    assert not (out / "state" / "packs").exists()
    # The same again, from what is kept beside: nothing is measured, and the figures stay.
    again = run(*asked)
    assert again.exit_code == 0, again.output
    assert "50 % of the experts' bytes" in again.stdout
    assert json.loads((out / "compression.json").read_text()) == document


@pytest.mark.parametrize(
    ("arguments", "code", "what"),
    [
        (["--method", "selekt"], 2, "did you mean select?"),
        (["--method", "select:scor=reap"], 2, "select has no setting 'scor'; did you mean score?"),
        (["--method", "select:allocation=perhaps"], 2, "setting allocation of select is none of uniform, shared"),
        (["--method", "select", "--method", "select"], 2, "--method names select twice"),
        (["--budgets", "50%,200%"], 2, "'200%' is no share of the experts' bytes"),
        (["--budgets", ","], 2, "--budgets names none"),
        (["--test", "other={f}/digits.jsonl"], 2, "--test names 'other', which --data does not"),
        (["--test", "digits={f}/none.jsonl"], 3, "no such calibration file"),
        (["--seeds", "9"], 2, "do not make 9 texts of 20"),
        (["--out", "{f}/no/out"], 3, "no such folder"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    folder: Path, tmp_path: Path, arguments: list[str], code: int, what: str
) -> None:
    given = [argument.format(f=folder) for argument in arguments]
    result = run(folder / "store", "--out", tmp_path / "out", *data(folder), "--seeds", "1", *given)
    assert result.exit_code == code, result.output
    assert what in result.stderr
    assert (result.stderr[:7], result.stderr.count("\n"), result.stdout) == ("error: ", 1, "")
    assert not (tmp_path / "out").exists()


def test_a_difference_of_nothing_has_no_sign_and_a_reason_may_hold_a_bar() -> None:
    one = {
        "name": "m",
        "percent": 25,
        "skeleton_bytes": 2048,
        "experts": [3, 4],
        "width": 8,
        "seconds": 1.5,
        "memory": 1 << 20,
        "retained": [99.0, 98.0, 100.0],
        "kl": [0.0, -0.0001, 0.0102],
        "over": {"random": None, "select": {"retained": [-0.04, -1.0, 0.0], "kl": [-0.0002, -0.01, 0.0]}},
    }
    budget: dict[str, Any] = {"percent": 25, "bytes": 1024, "entrants": [one, {"name": "n", "refused": "a | b"}]}
    assert rows(budget) == [
        (
            *("m", "25 and 2.0 KiB elsewhere", "3 to 4 x 8", "99.0 [98.0, 100.0]", "–", "0.0 [-1.0, 0.0]"),
            *("0.000 [0.000, 0.010]", "–", "0.000 [-0.010, 0.000]", "1.5", "1.0 MiB"),
        ),
        ("n", "–", "a | b", *["–"] * 8),
    ]
    shown = {"budgets": [budget], "full": {}, "left_out": []}
    assert "| `n` | – | a \\| b |" in sections({**shown, "budgets": [{**budget, "entrants": budget["entrants"][1:]}]})


def test_what_is_no_pack_is_said(folder: Path, tmp_path: Path) -> None:
    result = run(folder / "nothing", "--out", tmp_path / "out", *data(folder), "--seeds", "1")
    assert (result.exit_code, "nothing" in result.stderr, (tmp_path / "out").exists()) == (3, True, False)
