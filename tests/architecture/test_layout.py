"""The tree keeps the promises that imports and readers rely on."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("premoe_runtime", "services", "operator")
TORCH_FREE = ("premoe_operator", "premoe_gateway", "premoe_retrieval", "premoe_expert_store", "premoe_servicekit")


def tracked_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]


TOP_LEVEL = {
    *(".ci", ".dockerignore", ".gitignore"),
    *("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "constraints.txt", "pyproject.toml"),
    *("benchmarks", "charts", "docs", "examples", "operator", "premoe_runtime", "protos", "services", "tests", "tools"),
}


def test_nothing_else_lies_at_the_top() -> None:
    """What a program leaves behind, such as .kube/, is ignored and never committed."""
    assert {path.relative_to(ROOT).parts[0] for path in tracked_files()} - TOP_LEVEL == set()


@pytest.mark.parametrize("folder", ["operator", "services"])
def test_no_python_file_directly_in(folder: str) -> None:
    """A module or conftest in operator/ would shadow the standard library's operator."""
    assert list((ROOT / folder).glob("*.py")) == []


def test_test_folders_are_no_packages() -> None:
    packages = {path.parent.name for path in (ROOT / "tests").rglob("__init__.py")}
    assert packages <= {"support"}


@pytest.mark.slow
@pytest.mark.parametrize("package", TORCH_FREE)
def test_imports_without_torch(package: str) -> None:
    """Importing every module of the package loads neither torch nor transformers."""
    code = (
        "import importlib, pkgutil, sys\n"
        f"package = importlib.import_module({package!r})\n"
        "for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "    if not module.name.endswith('__main__'):\n"
        "        importlib.import_module(module.name)\n"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


def test_no_pickle_anywhere() -> None:
    """Nothing of ours imports pickle or lets torch unpickle, but for the pipe to a child that we started ourselves."""
    for path in chain.from_iterable((ROOT / folder).rglob("*.py") for folder in SOURCES):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            pickles = {"pickle", "dill", "cloudpickle", "joblib"} & {name.split(".")[0] for name in names}
            assert not pickles or path == ROOT / "premoe_runtime/engines/child/wire.py", path
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) != ("torch", "load"), path


def test_nothing_committed_is_huge_or_machine_bound() -> None:
    home = re.compile(rb"/(root|home/\w+)/(?!\.cache/premoe)[\w.]")
    for path in tracked_files():
        relative = path.relative_to(ROOT)
        data = path.read_bytes()
        assert len(data) <= 15 * 2**20, f"{relative} is over 15 MiB"
        if path.suffix not in (".safetensors", ".png"):
            assert not home.search(data), f"{relative} names a home folder"
            assert str(ROOT).encode() not in data, f"{relative} names this checkout's path"


def test_constraints_hold_no_address() -> None:
    assert "://" not in (ROOT / "constraints.txt").read_text()
    assert not (ROOT / "uv.lock").exists()


def test_every_dependency_says_why() -> None:
    """Each requirement in pyproject.toml carries one line of reason."""
    section = (ROOT / "pyproject.toml").read_text().split("[project.scripts]")[0].split("dependencies = [", 1)[1]
    for line in section.splitlines():
        if re.match(r'\s+"[A-Za-z]', line) and not re.match(r'\s+"premoe\[', line):
            assert "#" in line, f"no reason given: {line.strip()}"


def test_code_of_a_checkpoint_is_refused_in_so_many_words() -> None:
    """Wherever transformers loads a model or tokenizer, ``trust_remote_code=False`` is written out."""
    loaders = {"from_pretrained", "from_config"}
    silent = []
    for path in tracked_files():
        if path.suffix != ".py" or path.relative_to(ROOT).parts[0] == "tests":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in loaders):
                continue
            said = {word.arg: word.value for word in node.keywords}.get("trust_remote_code")
            if not (isinstance(said, ast.Constant) and said.value is False):
                silent.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert silent == []
