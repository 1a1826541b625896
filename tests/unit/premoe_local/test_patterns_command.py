import errno
import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from premoe_local.cli import command as premoe
from support.profiles import ALPHABETS, packed_model, profile, write_examples

from premoe_runtime.offline.patterns import library
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.storage import open_store


def premoe_run(*arguments: object) -> Result:
    return CliRunner().invoke(premoe, [str(argument) for argument in arguments])


def run(*arguments: object) -> Result:
    return premoe_run("patterns", *arguments)


def document(*arguments: object) -> dict[str, object]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A packed model with a profile of three tasks and a live set."""
    folder = tmp_path_factory.mktemp("patterns")
    url = packed_model(folder)
    for task in ALPHABETS:
        data = write_examples(folder / f"{task}.jsonl", task)
        assert premoe_run("profile", url, "--task", task, "--data", data).exit_code == 0
    assert run("build", url, "--set-live").exit_code == 0
    return url


def weights(store: str) -> str:
    return open_pack(store).manifest().weights_id


def test_build_writes_a_set_that_can_be_made_live(store: str) -> None:
    live = library.live_set_id(open_store(store), weights(store))
    made = document("build", store, store, "--metric", "seer", "--quantile", "0.9")
    assert made["set_id"] != live
    assert made["live"] is False
    assert library.live_set_id(open_store(store), weights(store)) == live
    assert [member["task"] for member in made["members"]] == [*sorted(ALPHABETS), "generalist"]  # type: ignore[attr-defined]
    assert [entry["budget"] for entry in made["generalist_retention"]] == ["4/16", "4/12", "4/8", "4/4"]  # type: ignore[attr-defined]
    again = document("build", store, "--metric", "seer", "--quantile", "0.9", "--set-live")
    assert again["set_id"] == made["set_id"] == library.live_set_id(open_store(store), weights(store))
    document("build", store, "--set-live")


def test_budgets_are_shared_by_impact_and_uniform_where_asked(store: str) -> None:
    made = document("build", store)
    assert made["metric"] == "impact"
    assert "slots, 2 spare" in run("build", store).stdout
    shown = document("show", store, "digits", "--set", str(made["set_id"]), "--budget", "4/6")
    assert len({len(layer) for layer in shown["layers"]}) > 1  # type: ignore[attr-defined]
    even = document("build", store, "--allocation", "uniform")
    assert even["set_id"] != made["set_id"]
    shown = document("show", store, "digits", "--set", str(even["set_id"]), "--budget", "4/6")
    assert [len(layer) for layer in shown["layers"]] == [6, 6]  # type: ignore[attr-defined]


def test_build_prints_tables_and_notes(store: str) -> None:
    result = run("build", store, "--budget", "4/8")
    assert result.exit_code == 0
    assert "Router mass kept" in result.stdout
    assert "prompts are too few for a 99.0% quantile" in result.stderr


def test_chosen_profiles_only(store: str) -> None:
    listed = document("list", store)["profiles"]
    digits = next(entry["profile_id"] for entry in listed if entry["task"] == "digits")  # type: ignore[attr-defined]
    assert document("build", store, "--profiles", "digits") == document("build", store, "--profiles", digits[:12])
    made = document("build", store, "--profiles", digits[:12])
    assert [member["task"] for member in made["members"]] == ["digits", "generalist"]  # type: ignore[attr-defined]


def test_list_and_show(store: str) -> None:
    listed = document("list", store)
    assert sum(entry["live"] for entry in listed["sets"]) == 1  # type: ignore[attr-defined]
    result = run("list", store)
    assert "digits" in result.stdout
    shown = document("show", store, "digits", "--budget", "4/6")
    assert shown["allocation"] == "shared"
    assert sum(len(layer) for layer in shown["layers"]) == 12  # type: ignore[attr-defined, misc]
    by_id = document("show", store, str(shown["pattern_id"])[:16], "--budget", "4/6")
    assert by_id == shown
    assert document("show", store)["set_id"] == library.live_set_id(open_store(store), weights(store))
    assert "cutoff" in run("show", store).stdout
    assert "most needed first" in " ".join(run("show", store, "digits").stdout.split())


@pytest.mark.slow
def test_plot_writes_a_png(store: str, tmp_path: Path) -> None:
    out = tmp_path / "digits.png"
    result = run("plot", store, "digits", "--out", out, "--budget", "4/8")
    assert result.exit_code == 0, result.output
    data = out.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    assert width > height > 300
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.slow
def test_a_plot_is_what_its_name_says(store: str, tmp_path: Path) -> None:
    for name, begins in {"x.jpg": b"\xff\xd8\xff", "x.svg": b"<?xml", "x": b"\x89PNG"}.items():
        assert run("plot", store, "--out", tmp_path / name).exit_code == 0
        assert (tmp_path / name).read_bytes().startswith(begins)
    refused = run("plot", store, "--out", tmp_path / "x.doc")
    assert (refused.exit_code, ".doc" in refused.stderr) == (2, True)
    assert not (tmp_path / "x.doc").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "what"),
    [
        (["show", "{store}", "poem"], 3, "no task or pattern 'poem'"),
        (["show", "{store}", "digits", "--budget", "4/99"], 2, "the model has 16"),
        (["show", "{store}", "digits", "--budget", "x"], 2, "is not of the form a/b"),
        (["show", "{store}", "digits", "--budget", "5/8"], 2, "the model's top-k is 4"),
        (["plot", "{store}", "digits", "--out", "x.png", "--budget", "5/8"], 2, "the model's top-k is 4"),
        (["show", "{store}", "--set", "ffff0000ffff"], 3, "no set 'ffff0000ffff'"),
        (["plot", "{store}", "poem", "--out", "{tmp}/x.png"], 3, "no task or pattern"),
        (["plot", "{store}", "--out", "{tmp}/absent/x.png"], 3, "absent/x.png: no such folder"),
        (["build", "{store}", "--profiles", "zzzz"], 3, "no profile 'zzzz'"),
        (["build", "{store}", "--quantile", "1.5"], 2, "quantile 1.5"),
        (["build", "{store}", "--budget", "5/8"], 2, "the model's top-k is 4"),
        (["build", "{store}", "--metric", "magic"], 2, "magic"),
        (["show", "{tmp}"], 3, "no live pattern set"),
    ],
)
def test_bad_input_is_one_line(store: str, tmp_path: Path, arguments: list[str], code: int, what: str) -> None:
    result = run(*(argument.format(store=store, tmp=tmp_path) for argument in arguments))
    assert result.exit_code == code, result.output
    assert what in result.stderr
    assert (result.stderr[:7], result.stderr.count("\n")) == ("error: ", 1)


def test_a_plot_that_cannot_be_put_in_place_leaves_nothing(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    result = run("plot", store, "--out", tmp_path / "x.png")
    assert result.exit_code == 7
    assert result.stderr == f"error: no space left while writing {tmp_path}/x.png; free some room and run again\n"
    assert list(tmp_path.iterdir()) == []


def test_the_same_text_profiled_twice_is_noted(store: str, tmp_path: Path) -> None:
    data = write_examples(tmp_path / "digits.jsonl", "digits")
    target = tmp_path / "twice"
    for dtype in ("float32", "bfloat16"):
        options = ("--task", "digits", "--data", data, "--to", target, "--dtype", dtype)
        assert premoe_run("profile", store, *options).exit_code == 0
    result = run("build", target, store)
    assert result.exit_code == 0, result.output
    assert "task digits: several of its profiles are of the same text" in result.stderr


def test_a_profile_of_other_weights_is_refused(store: str) -> None:
    stranger = library.put_profile(open_store(store), profile("stranger", weights_id="f" * 64))
    result = run("build", store, "--profiles", stranger)
    assert result.exit_code == 2
    assert "profile this model" in result.stderr
    assert "stranger" not in run("build", store).stdout
    open_store(store).delete(f"profiles/{stranger}.safetensors")


def test_a_task_with_too_few_prompts_is_left_out_with_a_note(store: str, tmp_path: Path) -> None:
    few = library.put_profile(open_store(store), profile("few", weights_id=weights(store), prompts=5))
    result = run("build", store)
    assert result.exit_code == 0, result.output
    assert "note: task few is left out: it has 5 prompts, and at least 20 are needed" in result.stderr
    assert run("build", store, "--profiles", few).exit_code == 2
    assert premoe_run("profile", "rm", store, few).exit_code == 0


def test_sets_are_chosen_and_removed(store: str) -> None:
    opened = open_store(store)
    live = library.live_set_id(opened, weights(store))
    other = document("build", store, "--metric", "seer")["set_id"]
    entries = document("list", store)["sets"]
    assert all(str(entry["made"]).endswith("UTC") for entry in entries)  # type: ignore[attr-defined]
    assert (
        document("set-live", store, str(other)[:16])["set_id"] == other == library.live_set_id(opened, weights(store))
    )
    refused = run("rm", store, str(other)[:16])
    assert (refused.exit_code, "is live" in refused.stderr) == (4, True)
    assert run("set-live", store, str(live)).stdout.startswith(f"set {live} is live")
    before = set(library.ids(opened, "patterns"))
    removed = document("rm", store, str(other))["removed"][0]  # type: ignore[index]
    assert removed["set_id"] == other
    assert other not in library.ids(opened, "sets")
    assert before - set(library.ids(opened, "patterns")) == set(removed["patterns"])
    assert run("show", store, "digits").exit_code == 0
    absent = run("set-live", store, "zzzz")
    assert (absent.exit_code, absent.stderr.count("\n")) == (3, 1)


def test_a_store_without_profiles_says_so(tmp_path: Path) -> None:
    result = run("build", packed_model(tmp_path))
    assert result.exit_code == 2
    assert "premoe profile" in result.stderr
