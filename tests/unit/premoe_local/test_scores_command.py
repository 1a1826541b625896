import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from premoe_local.cli import command as premoe
from support.profiles import packed_model, write_examples

from premoe_runtime.offline.profile.record import Profile
from premoe_runtime.offline.profile.scores import SCORES, sums_of
from premoe_runtime.storage import open_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return packed_model(tmp_path_factory.mktemp("scores"))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(premoe, [str(argument) for argument in arguments])


def test_every_score_is_listed_with_what_it_needs() -> None:
    listed = json.loads(run("scores", "--json").stdout)["scores"]
    assert [each["name"] for each in listed] == list(SCORES)
    by_name = {each["name"]: each for each in listed}
    assert by_name["peu"]["needs"] == ["router"]
    assert by_name["taylor"]["needs"] == ["loss"]
    assert set(by_name["easy-ep"]["not_of"]) == {"flex_olmo", "granitemoe", "minimax"}
    assert by_name["impact"]["usual"]
    assert not by_name["reap"]["usual"]
    assert "easy-ep" in run("scores").stdout


def test_a_profile_measures_what_was_asked_for_and_ranks_by_it(store: str, tmp_path: Path) -> None:
    data = write_examples(tmp_path / "digits.jsonl", "digits", 20)
    asked = ("profile", store, "--task", "digits", "--data", data, "--json", "--score", "reap", "--score", "frequency")
    made = run(*asked)
    assert made.exit_code == 0, made.output
    document = json.loads(made.stdout)
    profile = Profile.load(open_store(store).get, document["profile_id"])
    assert set(profile.state.sums) == set(sums_of(["reap", "counts"]))
    again = json.loads(run(*asked[:-2], "--score", "seer-hard").stdout)
    assert (again["profile_id"], again["seconds"]) == (document["profile_id"], None)
    usual = json.loads(run("profile", store, "--task", "digits", "--data", data, "--json").stdout)
    assert usual["profile_id"] != document["profile_id"]
    build = ("patterns", "build", store, "--json", "--profiles", document["profile_id"])
    built = run(*build, "--metric", "reap")
    assert built.exit_code == 0, built.output
    assert json.loads(built.stdout)["metric"] == "reap"
    refused = run(*build, "--metric", "impact")
    assert refused.exit_code == 2
    assert "not measured for the score 'impact': profile the task again with --score impact" in refused.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--score", "impcat"), "error: score 'impcat' is not known; did you mean impact? `premoe scores` lists them"),
        (
            ("--score", "reap@0.1"),
            "error: score 'reap@0.1' is not known: peu, peu-sigmoid and peu-exp take a threshold",
        ),
        (("--score", "reap", "--router-only"), "error: --router-only is a choice of scores: give it or --score"),
    ],
)
def test_wrong_scores_are_refused_before_anything_is_read(
    store: str, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    refused = run("profile", store, "--task", "a", "--data", tmp_path / "none.jsonl", *options)
    assert refused.exit_code == 2
    assert refused.output.startswith(message)
    assert refused.output.count("\n") == 1


def test_bounds_hold_in_the_set_and_impossible_ones_write_nothing(store: str, tmp_path: Path) -> None:
    target = f"file://{tmp_path / 'target'}"
    data = write_examples(tmp_path / "vowels.jsonl", "vowels", 20)
    assert run("profile", store, "--task", f"vowels={data}", "--to", target, "--router-only").exit_code == 0
    build = ("patterns", "build", target, store, "--metric", "seer", "--json")
    refused = run(*build, "--pin", "1:99")
    assert (refused.exit_code, refused.output.count("\n")) == (2, 1)
    assert "expert 99 of MoE layer 1 cannot be pinned: this layer has 16 experts" in refused.output
    refused = run(*build, "--most", "4", "--budget", "4/8")
    assert (refused.exit_code, refused.output.count("\n")) == (2, 1)
    assert "budget 4/8 keeps 8 experts a layer, but the bounds ask for 4 to 4" in refused.output
    assert not open_store(target).list("sets")
    built = run(*build, "--pin", "0:3,15", "--pin", "1:0")
    assert built.exit_code == 0, built.output
    set_id = json.loads(built.stdout)["set_id"]
    shown = json.loads(run("patterns", "show", target, "vowels", "--set", set_id, "--budget", "2/4", "--json").stdout)
    assert {3, 15} <= set(shown["layers"][0])
    assert 0 in shown["layers"][1]
    table = run(*build[:-1], "--most", "8")
    assert table.exit_code == 0, table.output
    assert "4/12" not in table.stdout
