"""The public Dockerfiles: two stages, one extra each, a numeric user, no shell between the runtime and the program."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FOLDERS = {
    "operator": "operator",
    "retrieval": "services/retrieval",
    "expert-store": "services/expert_store",
    "gateway": "services/gateway",
    "worker": "services/worker",
}


def instructions(name: str) -> list[tuple[str, str]]:
    """Instructions and their arguments, continued lines joined, comments left out."""
    text = (ROOT / FOLDERS[name] / "Dockerfile").read_text()
    lines = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines if line]


def last_stage(name: str) -> dict[str, str]:
    found = instructions(name)
    start = max(index for index, (instruction, _) in enumerate(found) if instruction == "FROM")
    return dict(found[start:])


@pytest.mark.parametrize("name", FOLDERS)
def test_two_stages_over_one_base(name: str) -> None:
    stages = [arguments for instruction, arguments in instructions(name) if instruction == "FROM"]
    assert stages == ["${PYTHON} AS build", "${PYTHON}"]
    assert ("ARG", "PYTHON=python:3.11-slim") in instructions(name)


@pytest.mark.parametrize("name", FOLDERS)
def test_installs_its_own_extra_only(name: str) -> None:
    runs = [arguments for instruction, arguments in instructions(name) if instruction == "RUN"]
    assert re.findall(r"'\.\[([a-z-]+)\]'", " ".join(runs)) == [name]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert name in extras


@pytest.mark.parametrize("name", FOLDERS)
def test_runs_as_a_numeric_user_without_a_shell(name: str) -> None:
    stage = last_stage(name)
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", stage["USER"])
    assert json.loads(stage["ENTRYPOINT"]) == [f"/opt/premoe/bin/premoe-{name}"]
    assert "RUN" not in stage


@pytest.mark.parametrize("name", FOLDERS)
def test_every_copied_source_exists_and_every_package_is_copied(name: str) -> None:
    copied = {
        source
        for instruction, arguments in instructions(name)
        if instruction == "COPY" and not arguments.startswith("--from")
        for source in arguments.split(" ")[:-1]
    }
    assert [source for source in copied if not (ROOT / source).exists()] == []
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert [package for package in hatch["packages"] if package.split("/")[0] not in copied] == []
