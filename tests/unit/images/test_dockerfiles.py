"""The public Dockerfiles: two stages, one extra each, a numeric user, no shell between the runtime and the program."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FILES = {
    "operator": "operator/Dockerfile",
    "retrieval": "services/retrieval/Dockerfile",
    "expert-store": "services/expert_store/Dockerfile",
    "gateway": "services/gateway/Dockerfile",
    "worker": "services/worker/Dockerfile",
    "worker-vllm": "services/worker/vllm.Dockerfile",
}
PROGRAMS = {name: name for name in FILES} | {"worker-vllm": "worker"}
"""What an image runs, which is also the name of the extra that it installs."""


def instructions(name: str) -> list[tuple[str, str]]:
    """Instructions and their arguments, continued lines joined, comments left out."""
    text = (ROOT / FILES[name]).read_text()
    lines = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines if line]


def last_stage(name: str) -> dict[str, str]:
    found = instructions(name)
    start = max(index for index, (instruction, _) in enumerate(found) if instruction == "FROM")
    return dict(found[start:])


@pytest.mark.parametrize("name", FILES)
def test_two_stages_over_one_base(name: str) -> None:
    stages = [arguments for instruction, arguments in instructions(name) if instruction == "FROM"]
    assert stages == ["${PYTHON} AS build", "${PYTHON}"]
    assert ("ARG", "PYTHON=python:3.11-slim") in instructions(name)


@pytest.mark.parametrize("name", FILES)
def test_installs_its_own_extra_only(name: str) -> None:
    runs = [arguments for instruction, arguments in instructions(name) if instruction == "RUN"]
    assert re.findall(r"'\.\[([a-z-]+)\]'", " ".join(runs)) == [PROGRAMS[name]]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert PROGRAMS[name] in extras


@pytest.mark.parametrize("name", FILES)
def test_runs_as_a_numeric_user_without_a_shell(name: str) -> None:
    stage = last_stage(name)
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", stage["USER"])
    assert json.loads(stage["ENTRYPOINT"]) == [f"/opt/premoe/bin/premoe-{PROGRAMS[name]}"]
    assert "RUN" not in stage


@pytest.mark.parametrize("name", FILES)
def test_every_copied_source_exists_and_every_package_is_copied(name: str) -> None:
    copied = {
        source
        for instruction, arguments in instructions(name)
        if instruction == "COPY" and not arguments.startswith("--from")
        for source in arguments.split(" ")[:-1]
    }
    assert [source for source in copied if not (ROOT / source).exists()] == []
    assert copied <= {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert [package for package in hatch["packages"] if package.split("/")[0] not in copied] == []


def test_the_image_with_vllm_takes_the_version_that_tests_take() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert ("ARG", f"VLLM={extras['vllm'][1]}") in instructions("worker-vllm")
