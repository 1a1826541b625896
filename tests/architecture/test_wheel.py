"""The one wheel carries all that the commands need: they run from it, outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FIXTURE = ROOT / "tests" / "fixtures" / "tiny-moe"
PREMOE = "from premoe_local.entry import main; main()"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = f"from hatchling.build import build_wheel; build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the wheel is unpacked, as an installer would."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def python(installed: Path, script: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a script that imports the wheel's packages, and the environment's for all else."""
    environ = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-P", "-c", script, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_it_holds_every_file_of_the_packages(wheel: Path) -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    listed = subprocess.run(
        ["git", "ls-files", *packages["packages"]], cwd=ROOT, capture_output=True, text=True, check=True
    )
    expected = set()
    for package in packages["packages"]:
        above = Path(package).parent
        expected |= {Path(name).relative_to(above) for name in listed.stdout.splitlines() if name.startswith(package)}
    with zipfile.ZipFile(wheel) as archive:
        held = {Path(name) for name in archive.namelist() if ".dist-info/" not in name}
    assert {Path("premoe_local/tasks/excerpts.json"), Path("premoe_gateway/console/page/index.html")} <= expected
    assert expected - held == set()
    assert {path for path in held if path.suffix not in (".py", ".pyi", ".proto")} <= expected


@pytest.mark.slow
def test_commands_run_from_it(installed: Path, tmp_path: Path) -> None:
    where = python(installed, "import premoe_local, premoe_worker; print(premoe_worker.__file__)", cwd=tmp_path)
    assert where.stdout.startswith(str(installed)), where.stderr
    store = f"file://{tmp_path}/store"
    for arguments in (["--help"], ["pack", FIXTURE, "--to", store], ["size", store, "--memory", "1GiB"]):
        done = python(installed, PREMOE, *arguments, cwd=tmp_path)
        assert (done.returncode, bool(done.stdout)) == (0, True), done.stderr
    tasks = python(installed, "from premoe_local.tasks import *; print(len(examples('py', 'test', 3)))", cwd=tmp_path)
    assert tasks.stdout == "3\n", tasks.stderr


@pytest.mark.slow
def test_the_demo_without_its_model_is_one_line(installed: Path, tmp_path: Path) -> None:
    done = python(installed, PREMOE, "demo", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("error: the demo's model is not installed with premoe; run it in a checkout")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_without_its_extra_the_command_says_so(installed: Path, tmp_path: Path) -> None:
    """The base of the wheel is what every image has; people need more."""
    done = python(installed, f"import sys; sys.modules['rich'] = None; {PREMOE}", "--help", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "error: rich.console is missing; install premoe[local], not premoe alone\n"
