import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from premoe_local.cli import command as premoe
from support.profiles import packed_model


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return packed_model(tmp_path_factory.mktemp("size"))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(premoe, ["size", *arguments])


def test_a_table_says_what_fits_and_why_not(store: str) -> None:
    result = run(store, "--memory", "2MiB", "--context", "64", "--batch", "1", "--budget", "4/4", "--budget", "4/16")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert any("4/4" in line and " yes " in line for line in lines)
    assert any("4/16" in line and " no " in line and "slots a layer" in line for line in lines)


def test_json_names_the_largest_budget_that_fits(store: str) -> None:
    result = run(store, "--memory", "1GiB", "--json")
    document = json.loads(result.stdout)
    assert document["largest"] == "4/16"
    assert document["max_slots"] == 16
    assert [fit["budget"] for fit in document["fits"]] == ["4/16", "4/12", "4/8", "4/4"]
    assert document["memory"] == 1 << 30
    assert all(fit["total"] <= document["memory"] for fit in document["fits"])


def test_nothing_that_fits_is_an_error(store: str) -> None:
    result = run(store, "--memory", "10KiB", "--json")
    assert (result.exit_code, result.stderr.count("\n")) == (7, 1)
    assert "the skeleton alone" in result.stderr
    assert json.loads(result.stdout)["largest"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "what"),
    [
        (["--memory", "lots"], 2, "not a size"),
        (["--memory", "1GiB", "--budget", "5/8"], 2, "error: budget 5/8 activates 5 experts"),
        (["--memory", "1GiB", "--budget", "4/3"], 2, "error: budget '4/3' keeps fewer"),
        (["--memory", "1GiB", "--budget", "4/17"], 2, "the model has 16"),
        (["--memory", "1GiB", "--budget", "4/" + "9" * 5000], 2, "not of the form a/b"),
        (["--memory", "1GiB", "--budget", "\u0664/\u0668"], 2, "not of the form a/b"),
        (["--memory", "1GiB", "--spare", "-1"], 2, "spare is -1"),
        (["--memory", "1GiB", "--context", "9999"], 2, "outside 1 to 1024"),
        (["--memory", "1GiB", "--context", "0"], 2, "outside 1 to 1024"),
        (["--memory", "1GiB", "--batch", "0"], 2, "rows is 0"),
    ],
)
def test_bad_input_is_one_line(store: str, arguments: list[str], code: int, what: str) -> None:
    result = run(store, *arguments)
    assert result.exit_code == code
    assert what in result.stderr
    assert result.stdout == ""
    assert (result.stderr[:7], result.stderr.count("\n")) == ("error: ", 1)


def test_no_pack_no_answer(tmp_path: Path) -> None:
    result = run(str(tmp_path), "--memory", "1GiB")
    assert result.exit_code == 3
    assert result.stderr.startswith("error: ")
