"""The page about the test cluster tells the truth."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from support import cluster_fixtures
from support.cluster_fixtures import control_plane, namespace
from support.control_plane import ControlPlane

__all__ = ["control_plane", "namespace"]

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "development-cluster.md").read_text()
ELSEWHERE = {"running_control_plane", "otlp_endpoint", "wait_for_trace"}
"""Names that are neither methods of the control plane nor fixtures."""


@pytest.mark.cluster
def test_its_example_runs(control_plane: ControlPlane, namespace: str) -> None:
    code = re.search(r"```python\n(.+?)```", PAGE, re.S)
    assert code is not None
    module: dict[str, Any] = {}
    exec(compile(code.group(1), "development-cluster.md", "exec"), module)
    module["test_something"](control_plane, namespace)


def test_what_it_names_exists() -> None:
    for name in re.findall(r"`([a-z_]+)(?:\([^`]*\))?`", PAGE):
        if "_" in name:
            assert hasattr(ControlPlane, name) or hasattr(cluster_fixtures, name) or name in ELSEWHERE, name
    for path in re.findall(r"`((?:tools|tests)/[\w./]+)", PAGE):
        assert (ROOT / path.rstrip(".")).exists(), path
