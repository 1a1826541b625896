import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from premoe_local.cli import command as premoe
from support.damaged import broken_router
from support.profiles import ALPHABETS, packed_model, write_examples

from premoe_runtime.offline.patterns.derive import specialist
from premoe_runtime.offline.profile.record import Profile, merge
from premoe_runtime.offline.profile.room import room
from premoe_runtime.offline.profile.scores import USUAL
from premoe_runtime.offline.sizing.bill import PROCESS_BYTES
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.storage import open_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return packed_model(tmp_path_factory.mktemp("profile"))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(premoe, ["profile", *(str(argument) for argument in arguments)])


def profiled(store: str, data: Path, *extra: object) -> Profile:
    result = run(store, "--task", "digits", "--data", data, "--json", *extra)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    value = Profile.load(open_store(store).get, document["profile_id"])
    assert document["url"].endswith(f"profiles/{value.profile_id}.safetensors")
    assert (document["samples"], document["tokens"], document["weights_id"]) == (
        value.samples,
        value.tokens,
        value.weights_id,
    )
    return value


def test_a_file_in_two_parts_gives_the_ranking_of_the_whole(store: str, tmp_path: Path) -> None:
    data = write_examples(tmp_path / "digits.jsonl", "digits", 20)
    whole = profiled(store, data)
    parts = [profiled(store, data, "--limit", 8), profiled(store, data, "--skip", 8)]
    assert whole.samples == 20 == sum(part.samples for part in parts)
    assert (specialist(merge(parts)).ranking == specialist(whole).ranking).all()
    assert profiled(store, data).profile_id == whole.profile_id


def test_prompts_alone_and_another_store(store: str, tmp_path: Path) -> None:
    data = write_examples(tmp_path / "digits.jsonl", "digits", 4, answer=None)
    target = f"file://{tmp_path / 'elsewhere'}"
    result = run(store, "--task", "digits", "--data", data, "--answers", "none", "--to", target)
    assert result.exit_code == 0, result.output
    assert "digits" in result.stdout
    assert len(open_store(target).list("profiles")) == 1


def test_several_tasks_share_one_run_and_are_measured_once(store: str, tmp_path: Path) -> None:
    files = {task: write_examples(tmp_path / f"{task}.jsonl", task, 20) for task in ALPHABETS}
    target = f"file://{tmp_path / 'target'}"
    tasks = [part for task, file in files.items() for part in ("--task", f"{task}={file}")]
    first = run(store, *tasks[:4], "--to", target, "--json")
    assert first.exit_code == 0, first.output
    assert [each["task"] for each in json.loads(first.stdout)["profiles"]] == list(ALPHABETS)[:2]
    again = run(store, *tasks, "--to", target, "--json")
    assert [each["seconds"] is None for each in json.loads(again.stdout)["profiles"]] == [True, True, False]
    assert "task digits was profiled with this data before" in again.stderr
    assert len(open_store(target).list("profiles")) == 3


def test_profiles_are_listed_and_removed(store: str, tmp_path: Path) -> None:
    target = f"file://{tmp_path / 'target'}"
    for task in ALPHABETS:
        data = write_examples(tmp_path / f"{task}.jsonl", task, 3)
        made = run(store, "--task", f"{task}={data}", "--to", target)
        assert f"note: task {task} has 3 prompts; `premoe patterns build` needs at least 20" in made.stderr

    def listed() -> list[dict[str, object]]:
        found: list[dict[str, object]] = json.loads(run("list", target, "--json").stdout)["profiles"]
        return found

    first = next(each for each in listed() if each["task"] == "digits")
    assert str(first["made"]).startswith("20")
    assert "vowels" in run("list", target).stdout
    assert run("rm", target, "vowels").stdout.startswith("removed profile ")
    removed = json.loads(run("rm", target, str(first["profile_id"])[:20], "--json").stdout)
    assert removed == {"removed": [first["profile_id"]]}
    assert [each["task"] for each in listed()] == ["capitals"]
    absent = run("rm", target, "vowels")
    assert (absent.exit_code, absent.stderr.count("\n")) == (3, 1)
    [left] = open_store(target).list("profiles")
    open_store(target).put(left.path, b"damaged")
    assert "(damaged)" in run("list", target).stdout
    assert run("rm", target, left.path.split("/")[1][:12]).exit_code == 0
    assert open_store(target).list("profiles") == []


def test_lines_that_are_not_used_are_counted(store: str, tmp_path: Path) -> None:
    data = write_examples(tmp_path / "digits.jsonl", "digits", 3)
    with data.open("a") as file:
        file.write(json.dumps({"prompt": "A" * 2000, "answer": "x"}) + "\n" + '{"prompt": "", "answer": "x"}\n')
    made = run(store, "--task", f"digits={data}", "--to", tmp_path / "target", "--json")
    assert json.loads(made.stdout)["profiles"][0]["samples"] == 3
    assert f"note: 2 lines passed over; the first: {data}:5: the prompt is empty" in made.stderr


def test_a_model_that_does_not_fit_is_profiled_layer_by_layer(store: str, tmp_path: Path) -> None:
    data = write_examples(tmp_path / "digits.jsonl", "digits", 20)
    needed = room(open_pack(store), torch.float32, USUAL)
    given = PROCESS_BYTES + (needed.whole + needed.one_layer) // 2
    found = []
    for memory, way in ((str(given), "layer by layer, in "), ("1TiB", "in memory: it takes ")):
        target = tmp_path / way.split()[0]
        made = run("--task", f"digits={data}", "--to", target, "--memory", memory, "--spool", tmp_path / "spool", store)
        assert made.exit_code == 0, made.output
        assert f"note: the model is profiled {way}" in made.stderr
        found += [info.path for info in open_store(str(target)).list("profiles")]
        assert not any(file.is_file() for file in (tmp_path / "spool").rglob("*"))
    assert found[0] == found[1]
    refused = run("--task", f"digits={data}", "--to", tmp_path / "none", "--memory", "900MiB", store)
    assert (refused.exit_code, refused.stderr.count("\n")) == (7, 1)
    assert "MiB even when it is profiled layer by layer, but 900 MiB are given; give more memory" in refused.stderr
    assert "is not a size" in run("--task", f"digits={data}", "--memory", "much", store).stderr


KILLED = """
import os, signal
from premoe_local.entry import main
from premoe_runtime.offline.profile.unfinished import Unfinished

save = Unfinished.save
Unfinished.save = lambda *arguments: (save(*arguments), os.kill(os.getpid(), signal.SIGKILL))
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("by_layers", [False, True])
def test_a_killed_run_goes_on_where_it_ended(store: str, tmp_path: Path, by_layers: bool) -> None:
    data = write_examples(tmp_path / "digits.jsonl", "digits", 400)
    needed = room(open_pack(store), torch.float32, USUAL)
    memory = PROCESS_BYTES + (needed.whole + needed.one_layer) // 2 if by_layers else 1 << 40
    options = ["--task", f"digits={data}", "--memory", memory, "--spool", tmp_path / "spool"]
    command = [sys.executable, "-c", KILLED, "profile", store, *options, "--to", tmp_path / "stopped"]
    killed = subprocess.run([str(part) for part in command], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(open_store(str(tmp_path / "stopped")).list("unfinished")) == 1
    again = run(store, *options, "--to", tmp_path / "stopped")
    assert again.exit_code == 0, again.output
    assert "the profile that was stopped goes on behind step 1\n" in again.stderr
    whole = run(store, *options, "--to", tmp_path / "whole")
    assert whole.exit_code == 0
    profiles = [[info.path for info in open_store(str(tmp_path / to)).list("profiles")] for to in ("stopped", "whole")]
    assert profiles[0] == profiles[1]
    assert open_store(str(tmp_path / "stopped")).list("unfinished") == []
    assert not any(file.is_file() for file in (tmp_path / "spool").rglob("*"))


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--task", "a"], "names no file; give --task TASK=FILE"),
        (["--task", "a", "--task", "b", "--data", "x"], "--data goes with one --task NAME"),
        (["--task", "a=x", "--data", "x"], "--data goes with one --task NAME"),
        (["--task", "a=x", "--task", "a=y"], "twice"),
        (["--task", "full=x"], "is no task name"),
    ],
)
def test_tasks_need_files_and_names_of_their_own(store: str, arguments: list[str], what: str) -> None:
    result = run(store, *arguments)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert what in result.stderr


def test_broken_lines_are_named_and_nothing_is_written(store: str, tmp_path: Path) -> None:
    data = write_examples(tmp_path / "digits.jsonl", "digits", 3)
    data.write_text(data.read_text() + '{"prompt": 3}\n')
    target = tmp_path / "nothing"
    result = run(store, "--task", "digits", "--data", data, "--to", f"file://{target}")
    assert result.exit_code == 2
    assert result.stderr == f'error: {data}:4: "prompt" is a int, expected text\n'
    assert not target.exists()


@pytest.mark.parametrize("answers", ["given", "own"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_router_that_is_not_finite_is_named_and_leaves_nothing(tmp_path: Path, value: float, answers: str) -> None:
    store = broken_router(tmp_path, value)
    before = {file for file in store.rglob("*") if file.is_file()}
    data = write_examples(tmp_path / "digits.jsonl", "digits", 3)
    result = run(store, "--task", f"digits={data}", "--answers", answers)
    assert (result.exit_code, result.stdout) == (5, "")
    assert result.stderr.startswith(f"error: {data}:1: router logits of MoE layer 1 are not finite; nothing is written")
    assert result.stderr.count("\n") == 1
    assert {file for file in store.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    ("text", "what"),
    [("", "holds no examples"), ("{\n", ":1: broken JSON"), ('{"prompt": "x"}\n', ":1: has no answer")],
)
def test_bad_files(store: str, tmp_path: Path, text: str, what: str) -> None:
    data = tmp_path / "bad.jsonl"
    data.write_text(text)
    result = run(store, "--task", "digits", "--data", data)
    assert result.exit_code == 2
    assert what in result.stderr


def test_bad_names_devices_and_models(store: str, tmp_path: Path) -> None:
    data = write_examples(tmp_path / "digits.jsonl", "digits", 2)
    for task in ("generalist", "full", "reject", "Two Words", ""):
        result = run(store, "--task", task, "--data", data)
        assert result.exit_code == 2
        assert "is no task name" in result.stderr
    assert "device 'moon'" in run(store, "--task", "digits", "--data", data, "--device", "moon").stderr
    assert "holds no data" in run(store, "--task", "digits", "--data", data, "--device", "meta").stderr
    assert run(store, "--task", "digits", "--data", tmp_path / "absent").exit_code == 3
    assert run(tmp_path / "empty", "--task", "digits", "--data", data).exit_code == 3


@pytest.mark.slow
def test_an_over_long_prompt_is_one_line(store: str, tmp_path: Path) -> None:
    data = tmp_path / "long.jsonl"
    data.write_text(json.dumps({"prompt": "A" * 2000, "answer": "x"}) + "\n")
    script = "from premoe_local.cli import main\nmain()"
    found = subprocess.run(
        [sys.executable, "-c", script, "profile", store, "--task", "digits", "--data", str(data)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith(f"error: {data}:1: ")
    assert found.stderr.count("\n") == 1
