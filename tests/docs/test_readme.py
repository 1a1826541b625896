"""The README's commands are real: every line of its blocks runs, in order, against the fixture model."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import pytest
from premoe_local.tasks import examples

from premoe_runtime.formats.choices import OnUnknown
from premoe_runtime.offline.calibration import PassedOver, parse_calibration

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BIN = Path(sys.executable).parent


def block(heading: str) -> list[str]:
    """Commands of the first indented block under a heading, comments removed."""
    section = README.split(f"{heading}\n", 1)[1]
    lines = re.search(r"(?:^    .+\n)+", section, re.M)
    assert lines is not None
    return [line.split("#")[0].strip() for line in lines.group().splitlines()]


def test_its_two_commands_are_make_targets() -> None:
    commands = block("# PreMoE")
    assert commands == ["make demo", "make test"]
    makefile = (ROOT / "Makefile").read_text()
    for command in commands:
        assert re.search(rf"^{command.split()[1]}:", makefile, re.M)


def test_ci_runs_the_test_command_and_then_what_it_leaves_out() -> None:
    """`make test-all` is the same for people; together the four targets run every test once."""
    commands = (ROOT / ".ci" / "run").read_text().splitlines()
    assert commands[-4:] == ["make test", "make test-ratios", "make test-vllm", "exec make test-cluster"]
    makefile = (ROOT / "Makefile").read_text()
    recipes = {
        name: re.findall(rf"^{name}:.*##.*\n((?:\t.+\n)+)", makefile, re.M)[0] for name in ("test", "test-cluster")
    }
    assert "APART  := $(KUBERNETES) or vllm or ratios\n" in makefile
    for name, chosen in (("test", '-m "not ($(APART))"'), ("test-cluster", '-m "$(KUBERNETES)"')):
        assert recipes[name].count("$(PYTEST)") == recipes[name].count(chosen) == 2, name
    assert makefile.count("PREMOE_CLUSTER_BIN := /nonexistent") == 1


@pytest.mark.parametrize(
    ("target", "arguments", "environment"),
    [
        ("demo", "", ".venv"),
        ("demo", "--engine=vllm", ".venv-vllm"),
        ("up", "--model x --engine vllm", ".venv-vllm"),
        ("up", "--model x --engine=auto", ".venv"),
    ],
)
def test_what_runs_on_vllm_has_an_environment_of_its_own(target: str, arguments: str, environment: str) -> None:
    command = ["make", "--dry-run", target, f"ARGS={arguments}"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    assert f"{environment}/bin/premoe {target} {arguments}".rstrip() in told
    assert ("install_vllm.sh" in told) is (environment == ".venv-vllm")


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_the_charts_and_files_of_on_kubernetes_exist() -> None:
    """The end-to-end tests run these commands with values of their own."""
    named = [word for command in block("## On Kubernetes") for word in command.split() if "/" in word]
    assert named == ["charts/premoe-crds", "charts/premoe", "examples/02-tasks.yaml"]
    assert all((ROOT / path).exists() for path in named)


def fenced(language: str) -> str:
    """The one block of a language under "Use it"."""
    (found,) = re.findall(rf"^```{language}\n(.+?)^```$", README.split("## Use it\n", 1)[1], re.M | re.S)
    return str(found)


def test_its_lines_of_a_task_are_what_profile_reads() -> None:
    unused = PassedOver()
    read = parse_calibration(fenced("jsonl").encode(), "README.md", passed_over=unused)
    assert (len(read), unused.places) == (2, [])
    assert [len(example.messages) for example in read] == [1, 2]


def test_its_policies_for_unknown_prompts_are_real() -> None:
    named = re.findall(r"`premoe up --on-unknown (\w+)", README)
    assert {"generalist", *named} == set(get_args(OnUnknown))


@pytest.mark.timeout(300)
def test_the_blocks_of_use_it_run(tmp_path: Path) -> None:
    """All of them in their order, in a folder with the fixture and two tasks' files."""
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    for file, task in (("sql", "roman"), ("mail", "kb")):
        lines = [json.dumps({"prompt": one.prompt, "answer": one.answer}) for one in examples(task, "calibration", 150)]
        (tmp_path / f"{file}.jsonl").write_text("\n".join(lines))
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    path, *commands = [command.replace("/tmp/premoe", str(tmp_path / "store")) for command in block("## Use it")]
    assert path == "export PATH=$PWD/.venv/bin:$PATH"
    assert [command.split()[1] for command in commands] == ["pack", "profile", "patterns", "size", "up"]
    for command in commands[:-1]:
        done = subprocess.run(command.split(), cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    prompt = examples("roman", "test", 1)[0].prompt
    with served(commands[-1], tmp_path, env) as url:
        for program, language in ((["bash", "-c"], "sh"), ([sys.executable, "-c"], "python")):
            script = fenced(language).replace("http://127.0.0.1:8000", url).replace("PROMPT", prompt)
            done = subprocess.run([*program, script], env=env, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr
            if language == "sh":
                assert json.loads(done.stdout)["premoe"]["task"] == "sql"
            else:
                assert done.stdout.endswith(" sql\n")


@contextmanager
def served(command: str, folder: Path, env: dict[str, str]) -> Iterator[str]:
    """`premoe up` gets ready, serves on this URL and stops on Ctrl-C."""
    # A runner started in the background ignores SIGINT, and the child would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [*command.split(), "--port", "0", "--json"], cwd=folder, env=env, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        ready = json.loads("".join([next(lines), *itertools.takewhile(lambda line: line != "}\n", lines), "}"]))
        yield ready["url"]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) in (0, 130)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
