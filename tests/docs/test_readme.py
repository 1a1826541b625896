"""The README's commands are real: every line of its blocks runs, in order, against the fixture model."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest
from premoe_local.tasks import examples

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
    """`make test-all` is the same for people; together the two targets run every test once."""
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-2:] == ["make test", "exec make test-cluster"]
    makefile = (ROOT / "Makefile").read_text()
    recipes = {
        name: re.findall(rf"^{name}:.*##.*\n((?:\t.+\n)+)", makefile, re.M)[0] for name in ("test", "test-cluster")
    }
    for name, chosen in (("test", '-m "not ($(KUBERNETES))"'), ("test-cluster", '-m "$(KUBERNETES)"')):
        assert recipes[name].count("$(PYTEST)") == recipes[name].count(chosen) == 2, name
    assert makefile.count("PREMOE_CLUSTER_BIN := /nonexistent") == 1


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_the_charts_and_files_of_on_kubernetes_exist() -> None:
    """The end-to-end tests run these commands with values of their own."""
    named = [word for command in block("## On Kubernetes") for word in command.split() if "/" in word]
    assert named == ["charts/premoe-crds", "charts/premoe", "examples/02-tasks.yaml"]
    assert all((ROOT / path).exists() for path in named)


@pytest.mark.timeout(300)
def test_the_commands_of_use_it_run(tmp_path: Path) -> None:
    (tmp_path / "my-moe").symlink_to(ROOT / "tests" / "fixtures" / "tiny-moe")
    with open(tmp_path / "sql.jsonl", "w") as data:
        for example in examples("roman", "calibration", 160):
            data.write(json.dumps({"prompt": example.prompt, "answer": example.answer}) + "\n")
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    commands = [command.replace("/srv/premoe", str(tmp_path / "store")) for command in block("## Use it")]
    assert [command.split()[1] for command in commands] == ["pack", "profile", "patterns", "size", "up"]
    for command in commands[:-1]:
        done = subprocess.run(command.split(), cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    serve(commands[-1], tmp_path, env)


def serve(command: str, folder: Path, env: dict[str, str]) -> None:
    """`premoe up` gets ready, answers on its URL and stops on Ctrl-C."""
    # A runner started in the background ignores SIGINT, and the child would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [*command.split(), "--port", "0", "--json"], cwd=folder, env=env, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        ready = json.loads("".join([next(lines), *itertools.takewhile(lambda line: line != "}\n", lines), "}"]))
        with urlopen(f"{ready['url']}/v1/models", timeout=10) as answer:
            assert json.load(answer)["data"]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) in (0, 130)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
