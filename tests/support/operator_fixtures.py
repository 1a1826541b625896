"""pytest fixtures of the operator tests; import them by name where they are used."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.cluster_fixtures import control_plane, namespace
from support.control_plane import ControlPlane
from support.operator_process import Site, make_site

__all__ = ["control_plane", "namespace", "site"]


@pytest.fixture
def site(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Site:
    """A fresh namespace with all that an operator needs; none runs yet."""
    return make_site(control_plane, namespace, tmp_path)
