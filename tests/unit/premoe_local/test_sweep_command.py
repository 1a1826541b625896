import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from premoe_local.cli import command as premoe
from support.profiles import packed_model, write_examples
from support.tiny import tiny_checkpoint

SMALL = [
    "--seeds",
    "2",
    "--prompts",
    "6",
    "--documents",
    "20",
    "--budget",
    "2/4",
    "--score",
    "impact",
    "--score",
    "counts",
]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(premoe, ["eval", "sweep", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds store/ (a packed model), its checkpoint, and <task>.jsonl files of 60 examples."""
    folder = tmp_path_factory.mktemp("sweep")
    packed_model(folder)
    tiny_checkpoint(folder / "again", seed=1)
    tiny_checkpoint(folder / "other", num_experts=8)
    for task in ("digits", "vowels"):
        write_examples(folder / f"{task}.jsonl", task, 60)
    return folder


def data(folder: Path) -> list[str]:
    return [part for task in ("digits", "vowels") for part in ("--data", f"{task}={folder / task}.jsonl")]


def test_own_model_and_own_data_become_a_page_pictures_and_json(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    result = run(folder / "qwen3_moe", "--out", out, *data(folder), *SMALL, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document == json.loads((out / "evaluation.json").read_text())
    assert document["full"]["digits"]["prompts"] == 6
    assert document["seeds"] == 2
    assert document["model"]["experts"] == 16
    assert document["model"]["probe_experts"] > 0
    page = (out / "evaluation.md").read_text()
    for title in ("Full model", "Contest at equal bytes", "Recognised as", "Across tasks"):
        assert f"## {title}" in page
    assert f"weights `{document['model']['models'][0]['weights_id'][:16]}`" in page
    for picture in out.glob("*.png"):
        assert f"![]({picture.name})" in page
        assert picture.read_bytes().startswith(b"\x89PNG")
    # The same again, from what is kept beside: nothing is measured, and the figures stay.
    again = run(folder / "qwen3_moe", "--out", out, *data(folder), *SMALL)
    assert again.exit_code == 0, again.output
    assert "equal bytes" in again.stdout
    assert json.loads((out / "evaluation.json").read_text()) == document


def test_training_seeds_of_one_thing_become_one_page_of_their_means(folder: Path, tmp_path: Path) -> None:
    models = [folder / "qwen3_moe", folder / "again" / "qwen3_moe"]
    options = ["--out", tmp_path, *data(folder), *SMALL, "--quick", "--json"]
    result = run(*models, *options)
    assert result.exit_code == 0, result.output
    both = json.loads(result.stdout)
    assert both["recipe"]["model"] == [str(model) for model in models]
    # Profiles and cells of one model are taken up when it is asked alone, from the same folder.
    kept = (tmp_path / "state" / "cells.jsonl").read_bytes()
    alone = [json.loads(run(model, *options).stdout) for model in models]
    assert (tmp_path / "state" / "cells.jsonl").read_bytes() == kept
    assert [one["model"]["models"] for one in alone] == [[named] for named in both["model"]["models"]]
    for task in ("digits", "vowels"):
        each = [one["contest"][0]["entrants"][0]["tasks"][task]["kl"][0] for one in alone]
        assert both["contest"][0]["entrants"][0]["tasks"][task]["kl"][0] == pytest.approx(sum(each) / 2, abs=2e-4)
        assert each[0] != each[1]


def test_a_recipe_says_the_same_as_options(folder: Path, tmp_path: Path) -> None:
    (folder / "recipe.toml").write_text(
        f'model = "file://{folder / "store"}"\nbudgets = ["2/4"]\nscores = ["frequency"]\nseeds = 2\nprompts = 6\n'
        'documents = 20\n[tasks.digits]\ndata = "digits.jsonl"\ncalibration = "digits.jsonl"\n'
        '[tasks.vowels]\ndata = "vowels.jsonl"\n'
    )
    result = run("--recipe", folder / "recipe.toml", "--out", tmp_path, "--quick", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["recipe"]["scores"] == ["counts"]
    assert document["matrix"] is None
    assert {row["score"] for row in document["kept"]} == {"counts", "impact"}


@pytest.mark.parametrize(
    ("arguments", "code", "what"),
    [
        (["--budget", "5/8"], 2, "the model's top-k is 4"),
        (["--budget", "2/17"], 2, "the model has 16"),
        (["--budget", "2"], 2, "not of the form a/b"),
        (["--score", "impakt"], 2, "did you mean impact"),
        (["--seeds", "0"], 2, "seeds: Input should be greater than or equal to 1"),
        (["--documents", "1"], 2, "documents: Input should be greater than or equal to 20"),
        (["--seeds", "9"], 2, "do not make 9 texts of 20"),
        (["--calibration", "other={f}/digits.jsonl"], 2, "'other', which --data does not"),
        (["--calibration", "digits={f}/one.jsonl"], 2, "1 calibration prompts"),
        (["--calibration", "digits={f}/empty.jsonl"], 2, "holds no examples"),
        (["--calibration", "digits={f}/none.jsonl"], 3, "no such calibration file"),
        (["--calibration", "digits={f}/nan.jsonl"], 2, '"answer" is a float, expected text'),
        (["{f}/store"], 2, "these weights are named twice"),
        (["{f}/other/qwen3_moe"], 2, "other/qwen3_moe is qwen3_moe of 8 experts, 4 a token, "),
        (["{f}/nothing"], 3, "nothing"),
        (["--recipe", "{f}/none.toml"], 3, "no such recipe"),
        (["--recipe", "{f}/broken.toml"], 2, "no TOML"),
        (["--recipe", "{f}/odd.toml"], 2, "odd.toml: tasks.digits.dato: Extra inputs are not permitted"),
        (["--recipe", "{f}/both.toml"], 2, "task digits: give either data or harness"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    folder: Path, tmp_path: Path, arguments: list[str], code: int, what: str
) -> None:
    files = {
        "one.jsonl": '{"prompt": "1", "answer": "yes"}\n',
        "empty.jsonl": "\n",
        "nan.jsonl": '{"prompt": "1", "answer": NaN}\n',
        "broken.toml": "model = \n",
        "odd.toml": '[tasks.digits]\ndato = "digits.jsonl"\n',
        "both.toml": '[tasks.digits]\ndata = "digits.jsonl"\nharness = "gsm8k"\n',
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    given = [argument.format(f=folder) for argument in arguments]
    named = [] if "--recipe" in given else [*data(folder), "--seeds", "2"]
    result = run(folder / "store", "--out", tmp_path / "out", *named, *given)
    assert result.exit_code == code, result.output
    assert what in result.stderr
    assert result.stdout == ""
    assert (result.stderr[:7], result.stderr.count("\n")) == ("error: ", 1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("asked", [["--budget", "5/8"], ["--score", "impakt"]])
def test_a_checkpoint_is_not_packed_for_what_it_cannot_give(folder: Path, tmp_path: Path, asked: list[str]) -> None:
    result = run(folder / "qwen3_moe", "--out", tmp_path / "out", *data(folder), "--seeds", "2", *asked)
    assert result.exit_code == 2, result.output
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_told_before_the_work(folder: Path, tmp_path: Path) -> None:
    result = run(folder / "store", "--out", tmp_path / "no" / "out", *data(folder))
    assert (result.exit_code, "no such folder" in result.stderr) == (3, True)
