import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from premoe_local.cli import command as premoe
from support.profiles import packed_model, write_examples

from premoe_runtime.offline.patterns.derive import specialist
from premoe_runtime.offline.profile.record import Profile, merge
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


def test_broken_lines_are_named_and_nothing_is_written(store: str, tmp_path: Path) -> None:
    data = write_examples(tmp_path / "digits.jsonl", "digits", 3)
    data.write_text(data.read_text() + '{"prompt": 3}\n')
    target = tmp_path / "nothing"
    result = run(store, "--task", "digits", "--data", data, "--to", f"file://{target}")
    assert result.exit_code == 2
    assert result.stderr == f'error: {data}:4: "prompt" is a int, expected text\n'
    assert not target.exists()


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
    for task in ("generalist", "Two Words", ""):
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
