"""docs/architecture.md names real places and the real contracts."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def rows() -> list[list[str]]:
    table = PAGE.split("## Components", 1)[1].split("## Contracts", 1)[0]
    lines = [line for line in table.splitlines() if line.startswith("| ") and not line.startswith("| component")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_path_in_the_component_table_exists() -> None:
    assert len(rows()) > 15
    for cells in rows():
        paths = [path for cell in cells[1:] for path in re.findall(r"`([\w./-]+/[\w./-]*)`", cell)]
        assert paths, cells
        for path in paths:
            assert (ROOT / path).exists(), f"{cells[0]}: {path}"


def test_every_source_folder_has_a_row() -> None:
    named = " ".join(cells[1] for cells in rows())
    folders = [*(ROOT / "premoe_runtime").glob("*/"), *(ROOT / "services").glob("*/premoe_*/")]
    for folder in folders:
        relative = folder.relative_to(ROOT).as_posix()
        if folder.is_dir() and folder.name != "__pycache__":
            assert any(
                relative.startswith(path.rstrip("/")) or path.startswith(relative)
                for path in re.findall(r"`([^`]+)`", named)
            ), relative


def test_contracts_are_the_enforced_ones() -> None:
    enforced = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    listed = re.findall(r"^- (.+)\.$", PAGE.split("## Contracts", 1)[1], re.M)
    assert listed == [contract["name"] for contract in enforced]
