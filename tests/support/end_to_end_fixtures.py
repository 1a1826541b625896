"""pytest fixtures of tests that need an installed release; import them by name, and name them in ``__all__``."""

from __future__ import annotations

import pytest

from support.cluster_fixtures import once_a_run
from support.end_to_end import Ground, Release, running_ground, running_release
from support.node import Node

__all__ = ["ground", "release"]

_GROUND = pytest.StashKey[Ground]()
_RELEASE = pytest.StashKey[Release]()


@pytest.fixture
def ground(request: pytest.FixtureRequest, node: Node, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """What all releases of a run stand on."""
    return once_a_run(request, _GROUND, lambda: running_ground(node, tmp_path_factory.mktemp("ground")))


@pytest.fixture
def release(request: pytest.FixtureRequest, ground: Ground) -> Release:
    """The release that the tests of a run share, with one worker; its processes talk plain text."""
    return once_a_run(request, _RELEASE, lambda: running_release(ground))
