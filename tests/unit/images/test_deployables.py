"""What each image installs: its program starts, torch is out of reach, and it stays small."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from rootfs import packages
from rootfs.builder import DEPLOYABLES

ROOT = Path(__file__).parents[3]
CEILINGS_MB = {"operator": 200, "retrieval": 180, "expert-store": 150, "gateway": 150}
"""Python packages of an image, in MB (10^6 bytes); the Kubernetes client is two thirds of the operator's."""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The distribution's wheel."""
    return packages.build_wheel(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module", params=CEILINGS_MB)
def installed(request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel and one extra, from uv's cache, in a folder named after the extra."""
    environment = tmp_path_factory.mktemp("environment") / str(request.param)
    uv = packages.find_uv()
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(environment)], check=True)
    wanted = f"premoe[{request.param}] @ {wheel.as_uri()}"
    command = [uv, "pip", "install", "-q", "--offline", "--python", str(environment / "bin/python")]
    subprocess.run([*command, "-c", str(ROOT / "constraints.txt"), wanted], check=True)
    return environment


def test_program_explains_itself(installed: Path) -> None:
    program = DEPLOYABLES[installed.name].programs[0]
    answer = subprocess.run(
        [installed / "bin" / program, "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    assert program in answer.stdout


def test_torch_is_not_importable(installed: Path) -> None:
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is not None)"
    subprocess.run([installed / "bin/python", "-c", code], timeout=60, check=True)


def test_size(installed: Path) -> None:
    folder = next(installed.glob("lib/python*/site-packages"))
    # Before the first run: compiled files come and go.
    size = sum(path.lstat().st_size for path in folder.rglob("*") if "__pycache__" not in path.parts and path.is_file())
    assert size / 1e6 <= CEILINGS_MB[installed.name]
