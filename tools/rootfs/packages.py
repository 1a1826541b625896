"""The layers above the base: the dependencies of one deployable, and PreMoE's own wheel with its programs.

They form the virtual environment /opt/premoe, as in the public images: programs in /opt/premoe/bin.
"""

from __future__ import annotations

import filecmp
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rootfs import libraries
from rootfs.python_root import PREFIX, VERSION, compile_all

ENVIRONMENT = "opt/premoe"
SITE_PACKAGES = f"{ENVIRONMENT}/lib/{VERSION}/site-packages"
SELF = re.compile(r"premoe\[([a-z,-]+)\]")


class BuildFailed(RuntimeError):
    """A tool that the builder runs failed; the text is its own."""


def requirements(project: Mapping[str, Any], extra: str) -> list[str]:
    """Requirements of the distribution with one extra, and those it names. Raises KeyError: no such extra."""
    table: Mapping[str, list[str]] = project["optional-dependencies"]
    found = dict.fromkeys(project["dependencies"])
    waiting = [extra] if extra else []
    while waiting:
        for requirement in table[waiting.pop()]:
            inner = SELF.fullmatch(requirement)
            if inner:
                waiting.extend(inner[1].split(","))
            else:
                found[requirement] = None
    return list(found)


def read_project(repository: Path) -> dict[str, Any]:
    """The [project] table of the repository. Raises OSError, TOMLDecodeError."""
    project: dict[str, Any] = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    return project


def write_dependencies(
    root: Path, wanted: Iterable[str], constraints: Path, *, below: Sequence[Path], offline: bool
) -> None:
    """Install requirements below ``root``, and what their libraries need of the system, less what ``below`` has.

    Raises BuildFailed, OSError.
    """
    install(root / SITE_PACKAGES, list(wanted), constraints, offline=offline)
    _write_environment(root)
    compile_all(root / SITE_PACKAGES, root)
    objects = libraries.shared_objects(root / ENVIRONMENT)
    libraries.copy_into(root, libraries.closure(objects), present=below)
    for layer in below:
        drop_equal(root, layer)


def drop_equal(root: Path, layer: Path) -> None:
    """Remove from ``root`` the files and links that a lower layer has just so. Raises OSError."""
    for path in [path for path in root.rglob("*") if path.is_symlink() or path.is_file()]:
        if _equal(path, layer / path.relative_to(root)):
            path.unlink()


def _equal(one: Path, other: Path) -> bool:
    if one.is_symlink() or other.is_symlink():
        return one.is_symlink() and other.is_symlink() and one.readlink() == other.readlink()
    return other.is_file() and filecmp.cmp(one, other, shallow=False)


def write_application(root: Path, wheel: Path, programs: Mapping[str, str], constraints: Path) -> None:
    """Install the wheel alone, and programs (name → ``module:function``), below ``root``. Raises BuildFailed."""
    install(root / SITE_PACKAGES, [str(wheel)], constraints, offline=True, options=["--no-deps"])
    folder = root / ENVIRONMENT / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    for name, target in sorted(programs.items()):
        module, _, function = target.partition(":")
        script = folder / name
        script.write_text(f"#!/{ENVIRONMENT}/bin/python\nfrom {module} import {function}\n\n{function}()\n")
        script.chmod(0o755)
    compile_all(root / SITE_PACKAGES, root)


def build_wheel(repository: Path, folder: Path) -> Path:
    """Build the wheel with the build backend of this environment. Raises BuildFailed."""
    folder.mkdir(parents=True, exist_ok=True)
    _run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder.resolve())], cwd=repository)
    return next(folder.glob("premoe-*.whl"))


def install(target: Path, wanted: list[str], constraints: Path, *, offline: bool, options: Iterable[str] = ()) -> None:
    """Install into a folder with uv, at the constraints' versions. Raises BuildFailed."""
    command = [find_uv(), "pip", "install", "-q", "--python", sys.executable, "--target", str(target)]
    # Copies: hard links into the cache would let a container that writes as root change the cache.
    options = ["--link-mode", "copy", *(["--offline"] if offline else []), *options]
    _run([*command, "-c", str(constraints), *options, *wanted])
    # Programs of dependencies name this machine's interpreter.
    shutil.rmtree(target / "bin", ignore_errors=True)
    (target / ".lock").unlink(missing_ok=True)


def find_uv() -> str:
    """The installer: on PATH, or where tools/install.sh puts it. Raises BuildFailed."""
    own = Path.home() / ".cache" / "premoe" / "uv" / "bin"
    found = shutil.which("uv") or shutil.which("uv", path=str(own))
    if found is None:
        raise BuildFailed("uv is missing; make install installs it")
    return found


def _write_environment(root: Path) -> None:
    binary = root / ENVIRONMENT / "bin" / "python"
    binary.parent.mkdir(parents=True)
    binary.symlink_to(f"/{PREFIX}/bin/{VERSION}")
    version = ".".join(str(number) for number in sys.version_info[:3])
    lines = [f"home = /{PREFIX}/bin", "include-system-site-packages = false", f"version = {version}"]
    (root / ENVIRONMENT / "pyvenv.cfg").write_text("\n".join(lines) + "\n")


def _run(command: list[str], cwd: Path | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    if done.returncode != 0:
        raise BuildFailed(f"{command[0]} failed with {done.returncode}: {(done.stderr or done.stdout).strip()[-2000:]}")
