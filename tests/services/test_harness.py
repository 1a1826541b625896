"""The real lm-evaluation-harness against a whole mesh of processes, in an environment of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest
from premoe_local.mesh import Mesh
from rootfs import packages
from support.mesh import prompts
from support.processes import environ
from support.tiny import tiny_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TASKS = Path(__file__).parents[1] / "support" / "harness"
LOCAL = Path(__file__).parents[2] / "services" / "local"
PACKAGES = ("lm_eval[api]==0.4.13", "transformers>=5.17,<5.20", "blake3", "obstore", "pydantic")
OFFLINE = {
    "PYTHONPATH": f"{LOCAL}:{LOCAL.parents[1]}",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "NO_PROXY": "127.0.0.1",
}
READ = """
import json, sys
from premoe_local.evaluation.harness import harness_examples
from premoe_runtime.formats.errors import PremoeError
try:
    parts = harness_examples(*sys.argv[1:])
    print(json.dumps([[[e.messages[0].content, e.answer, e.line] for e in part] for part in parts]))
except PremoeError as error:
    print(json.dumps(str(error)))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has lm_eval. Skips where the index cannot be reached and uv's cache does not hold it."""
    folder = tmp_path_factory.mktemp("lm_eval")
    uv, interpreter = packages.find_uv(), folder / "bin/python"
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(folder)], check=True)
    done = subprocess.run(
        [uv, "pip", "install", "-q", "--python", str(interpreter), *PACKAGES], capture_output=True, text=True
    )
    if done.returncode and "client error" in done.stderr:
        pytest.skip(f"no package index here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return interpreter


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two tasks, a tokenizer, and the prompts that both ask."""
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts("digits", 3)))
    for task in TASKS.glob("*.yaml"):
        (folder / task.name).write_text(task.read_text().replace("DATA", str(data)))
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    return folder


def run(python: Path, mesh: Mesh, tasks: Path, out: Path, pattern: str) -> subprocess.CompletedProcess[str]:
    settings = {
        "model": mesh.model_name,
        "base_url": f"{mesh.url}/v1/completions",
        "tokenizer": tasks / "tokenizer",
        "tokenizer_backend": "huggingface",
        "max_length": 128,
        "max_retries": 1,
        "pattern": pattern,
    }
    arguments = ",".join(f"{name}={value}" for name, value in settings.items())
    command = [str(python), "-m", "premoe_local.evaluation.endpoint", "run", "--model", "premoe"]
    command += ["--model_args", arguments, "--tasks", "premoe_likely,premoe_written", "--include_path", str(tasks)]
    command += ["--output_path", str(out), "--log_samples"]
    caches = {"HF_HOME": str(out / "cache")}
    return subprocess.run(command, env=environ(OFFLINE | caches), capture_output=True, text=True, timeout=600)


def samples(out: Path, task: str) -> list[dict[str, Any]]:
    """What the harness noted of every prompt, in its order."""
    (path,) = out.rglob(f"samples_{task}_*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("pattern", ["digits", "vowels"])
def test_the_harness_measures_what_the_pattern_s_experts_answer(
    mesh: Mesh, python: Path, tasks: Path, tmp_path: Path, pattern: str
) -> None:
    done = run(python, mesh, tasks, tmp_path, pattern)
    assert done.returncode == 0, done.stderr[-3000:]
    tokenizer = tiny_tokenizer()
    with openai.OpenAI(base_url=f"{mesh.url}/v1", api_key="none", max_retries=0) as client:
        for each in samples(tmp_path, "premoe_likely"):
            prompt = each["doc"]["prompt"]
            start = len(tokenizer(prompt)["input_ids"])
            for choice, (likely, _) in zip(("yes", "no"), each["filtered_resps"], strict=True):
                echoed = client.completions.create(
                    model=mesh.model_name,
                    prompt=f"{prompt} {choice}",
                    max_tokens=0,
                    echo=True,
                    logprobs=1,
                    extra_body={"pattern": pattern},
                )
                found = echoed.choices[0].logprobs
                assert found is not None
                assert found.token_logprobs is not None
                assert float(likely) == pytest.approx(sum(found.token_logprobs[start:]), abs=1e-3)
        for each in samples(tmp_path, "premoe_written"):
            written = client.completions.create(
                model=mesh.model_name,
                prompt=each["doc"]["prompt"],
                max_tokens=6,
                temperature=0,
                stop=["\n\n"],
                extra_body={"pattern": pattern},
            )
            assert each["resps"][0][0] == written.choices[0].text


def test_a_pattern_that_is_not_there_ends_the_run(mesh: Mesh, python: Path, tasks: Path, tmp_path: Path) -> None:
    done = run(python, mesh, tasks, tmp_path, "poems")
    assert done.returncode != 0
    assert "poems" in done.stderr + done.stdout


def test_its_tasks_give_examples_to_calibrate_with_and_to_ask(python: Path, tasks: Path, tmp_path: Path) -> None:
    for part in ("train", "test"):
        rows = [{"q": f"{part} {n}", "right": n % 2, "options": ["yes", "no"]} for n in range(3)]
        (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = f"{{train: {tmp_path / 'train.jsonl'}, test: {tmp_path / 'test.jsonl'}}}"
    (tmp_path / "own.yaml").write_text(
        f"task: own_choice\ndataset_path: json\ndataset_kwargs: {{data_files: {files}}}\ntraining_split: train\n"
        'test_split: test\noutput_type: multiple_choice\ndoc_to_text: "Is {{q}}?"\ndoc_to_choice: options\n'
        "doc_to_target: right\nmetric_list: [{metric: acc}]\n"
    )

    def read(*arguments: str) -> Any:
        environment = environ(OFFLINE | {"HF_HOME": str(tmp_path / "cache")})
        command = [str(python), "-c", READ, *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    test, calibration = read("own_choice", str(tmp_path))
    assert test == [["Is test 0?", "yes", 1], ["Is test 1?", "no", 2], ["Is test 2?", "yes", 3]]
    assert [prompt for prompt, _, _ in calibration] == ["Is train 0?", "Is train 1?", "Is train 2?"]
    assert "has no training examples with one answer each" in read("premoe_written", str(tasks))
    assert "has no task 'poems'" in read("poems")
