import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from premoe_local.cli import command as premoe
from support.profiles import ALPHABETS, packed_model, write_examples

from premoe_runtime.formats.budget import Budget
from premoe_runtime.offline.patterns import library
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.storage import open_store


def premoe_run(*arguments: object) -> Result:
    return CliRunner().invoke(premoe, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds store/ (a packed model with a live set of three tasks) and <task>.jsonl files."""
    folder = tmp_path_factory.mktemp("eval")
    url = packed_model(folder)
    for task in ALPHABETS:
        data = write_examples(folder / f"{task}.jsonl", task)
        assert premoe_run("profile", url, "--task", task, "--data", data).exit_code == 0
    assert premoe_run("patterns", "build", url, "--set-live").exit_code == 0
    return folder


def url(folder: Path) -> str:
    return f"file://{folder / 'store'}"


def run(folder: Path, *arguments: object) -> Result:
    return premoe_run("eval", url(folder), *arguments)


def data(folder: Path, *tasks: str) -> list[str]:
    return [part for task in tasks for part in ("--data", f"{task}={folder / task}.jsonl")]


def test_every_variant_is_measured_at_every_budget(folder: Path) -> None:
    result = run(folder, *data(folder, "digits", "vowels"), "--budgets", "4/16,2/4", "--limit", 6, "--json")
    assert result.exit_code == 0, result.output
    results = json.loads(result.stdout)["results"]
    assert len(results) == 2 * (1 + 2 * 5)
    assert {entry["examples"] for entry in results} == {6}
    by_key = {(entry["task"], entry["variant"], entry["budget"]): entry for entry in results}
    full, everything = by_key["digits", "full", None], by_key["digits", "random", "4/16"]
    # All experts kept is the full model, whatever the ranking.
    assert everything["perplexity"] == pytest.approx(full["perplexity"])
    assert full["retained_mass"] == pytest.approx(1)
    assert by_key["digits", "specialist", "2/4"]["retained_mass"] > by_key["digits", "random", "2/4"]["retained_mass"]
    assert by_key["digits", "wrong", "2/4"]["pattern"] == "vowels"


def test_tables_and_single_patterns(folder: Path) -> None:
    store = open_store(url(folder))
    pattern = library.find_pattern(store, "digits")
    result = run(
        folder, *data(folder, "digits"), "--budgets", "4/8", "--limit", 2, "--patterns", pattern.pattern_id[:12]
    )
    assert result.exit_code == 0, result.output
    assert "Exact match, %" in result.stdout
    assert "Perplexity" in result.stdout
    assert "generalist" not in result.stdout


def test_the_measured_generalist_is_recorded_in_a_new_set(folder: Path) -> None:
    store = open_store(url(folder))
    weights_id = open_pack(url(folder)).manifest().weights_id
    before = library.load_set(store, weights_id)
    result = run(folder, *data(folder, "digits"), "--budgets", "4/8,4/6", "--limit", 3, "--record", "--json")
    assert result.exit_code == 0, result.output
    found = library.load_set(store, weights_id, json.loads(result.stdout)["recorded_set_id"])
    assert library.load_set(store, weights_id).set_id == before.set_id != found.set_id
    assert found.members == before.members
    retention = found.retention(Budget(4, 6))
    known = before.retention(Budget(4, 8))
    again = found.retention(Budget(4, 8))
    assert retention is not None
    assert known is not None
    assert again is not None
    assert 0 < retention.mass < 1
    assert again.mass == known.mass


def test_what_decisions_cost_is_on_the_card_of_the_new_set(folder: Path) -> None:
    arguments = [*data(folder, "digits", "vowels"), "--budgets", "4/16,4/6", "--limit", 8, "--record", "--json"]
    result = run(folder, *arguments)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    decided = document["decided"]
    assert {one["task"] for one in decided} == {"digits", "vowels"}
    for budget in ("4/16", "4/6"):
        for task in ("digits", "vowels"):
            some = [one for one in decided if (one["task"], one["budget"]) == (task, budget)]
            assert sum(one["share"] for one in some) == pytest.approx(1)
    # With every expert kept all patterns are the full model.
    assert [one["lost"] for one in decided if one["budget"] == "4/16"] == pytest.approx(
        [0.0] * sum(one["budget"] == "4/16" for one in decided)
    )
    shown = premoe_run("patterns", "show", url(folder), "--set", document["recorded_set_id"])
    assert shown.exit_code == 0, shown.output
    assert "What decisions cost" in shown.stdout
    assert "another task's specialist" in shown.stdout
    whole = premoe_run("patterns", "show", url(folder), "--set", document["recorded_set_id"], "--json")
    assert json.loads(whole.stdout)["decided"] == decided


@pytest.mark.parametrize(
    ("arguments", "code", "what"),
    [
        (["--data", "digits={f}/digits.jsonl", "--budgets", "5/8"], 2, "the model's top-k is 4"),
        (["--data", "digits={f}/digits.jsonl", "--budgets", "4/2"], 2, "keeps fewer experts than it activates"),
        (["--data", "digits={f}/digits.jsonl", "--budgets", "4/17"], 2, "the model has 16"),
        (["--data", "digits={f}/digits.jsonl", "--budgets", "4/8;"], 2, "not of the form a/b"),
        (["--data", "poem={f}/digits.jsonl", "--budgets", "4/8"], 3, "no pattern for task 'poem'"),
        (["--data", "{f}/digits.jsonl", "--budgets", "4/8"], 2, "names no file; give --data TASK=FILE"),
        (
            ["--data", "a={f}/digits.jsonl", "--data", "a={f}/digits.jsonl", "--budgets", "4/8"],
            2,
            "names 'a' twice",
        ),
        (["--data", "digits={f}/digits.jsonl", "--budgets", "4/8", "--limit", "0"], 2, "error: Invalid value"),
        (["--data", "digits={f}/none.jsonl", "--budgets", "4/8"], 3, "no such calibration file"),
        (["--data", "digits={f}/digits.jsonl", "--budgets", "4/8", "--patterns", "zz"], 3, "no task or pattern 'zz'"),
        (["--data", "digits={f}/digits.jsonl", "--budgets", "4/8", "--set", "zz"], 3, "no set 'zz'"),
        (["--data", "digits={f}/digits.jsonl", "--budgets", "4/8", "--patterns", "a", "--record"], 2, "needs a set"),
        (["--data", "digits={f}/digits.jsonl", "--budgets", "4/8", "--set-live"], 2, "with --record only"),
    ],
)
def test_bad_input_is_one_line(folder: Path, arguments: list[str], code: int, what: str) -> None:
    result = run(folder, *(argument.format(f=folder) for argument in arguments))
    assert result.exit_code == code, result.output
    assert what in result.stderr
    assert result.stdout == ""
    assert (result.stderr[:7], result.stderr.count("\n")) == ("error: ", 1)


def test_examples_without_answers_are_named(folder: Path, tmp_path: Path) -> None:
    path = write_examples(tmp_path / "digits.jsonl", "digits", 2, answer=None)
    result = run(folder, "--data", f"digits={path}", "--budgets", "4/8")
    assert result.exit_code == 2
    assert f"{path}:1: has no answer" in result.stderr


def test_a_budget_given_twice_is_measured_once(folder: Path) -> None:
    result = run(folder, *data(folder, "digits"), "--budgets", "4/8,4/8", "--limit", 2, "--json")
    assert [entry["budget"] for entry in json.loads(result.stdout)["results"]] == [None, *["4/8"] * 5]


def test_ablation_says_what_each_task_loses_without_another_beside_random_masks(folder: Path) -> None:
    arguments = [*data(folder, "digits", "vowels"), "--budgets", "full,2/6", "--limit", 4, "--controls", 2]
    result = premoe_run("eval", "ablate", url(folder), *arguments, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["denied"].keys() <= set(ALPHABETS)
    assert {one["task"] for one in document["nobody"]} == {"digits", "vowels"}
    assert len(document["means"]) == 4
    losses = document["losses"]
    assert len(losses) == len(document["denied"]) * 2 * 2 * 2
    for own, control in zip(losses[::2], losses[1::2], strict=True):
        assert (own["control"], control["control"]) == (False, True)
        assert all(own[name] == control[name] for name in ("task", "denied", "budget", "experts"))
        assert own["kl"][0] >= 0
        assert own["experts"] > 0 or own["budget"] != "full"
    own = {one["denied"]: one["kl"][0] for one in losses if not one["control"] and one["budget"] == "full"}
    assert max(own.values()) > 0
    tables = premoe_run("eval", "ablate", url(folder), *data(folder, "digits"), "--limit", 2, "--controls", 1)
    assert tables.exit_code == 0, tables.output
    for part in ("Exact match lost on the mean", "as many at random", "Perplexity of the given answers", "(nobody)"):
        assert part in tables.stdout


def test_ablation_refuses_what_it_cannot_run(folder: Path) -> None:
    for arguments, message in (
        ([*data(folder, "digits"), "--budgets", "9"], "budget '9' is not of the form a/b"),
        ([*data(folder, "digits"), "--budgets", "5/8"], "the model's top-k is 4"),
        (["--data", f"sums={folder / 'digits.jsonl'}"], "no pattern for task 'sums'; the patterns of the set are for"),
    ):
        result = premoe_run("eval", "ablate", url(folder), *arguments)
        assert result.exit_code != 0
        assert message in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
