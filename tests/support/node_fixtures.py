"""pytest fixtures of the node tests; import them by name where they are used, and name them in ``__all__``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from support.cluster_fixtures import create_namespace, delete_namespace, once_a_run, restrict
from support.deployable_images import build_images, reference
from support.node import Node, NodeUnavailable, running_node

__all__ = ["node", "node_namespace", "probe_image", "shared_node"]

_NODE = pytest.StashKey[Node]()
_PROBE_IMAGE = pytest.StashKey[str]()


@pytest.fixture(scope="session")
def shared_node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Node:
    """The node that all tests of a run share. Its network is entered by ``node``, or by ``shared_node.network()``."""
    try:
        return once_a_run(request, _NODE, lambda: running_node(tmp_path_factory.mktemp("node")))
    except NodeUnavailable as error:
        skip_or_fail(error)


def skip_or_fail(error: NodeUnavailable) -> NoReturn:
    """Skip where no node can run, and fail where REQUIRE_E2E=1 says that one must."""
    if os.environ.get("REQUIRE_E2E") == "1":
        pytest.fail(str(error), pytrace=False)
    pytest.skip(str(error))


@pytest.fixture
def node(shared_node: Node) -> Iterator[Node]:
    """The node, with the test's thread inside its network."""
    shared_node.check()
    with shared_node.network():
        yield shared_node


@pytest.fixture
def node_namespace(node: Node) -> Iterator[str]:
    """A fresh namespace of the node's cluster that enforces the `restricted` pod security standard."""
    name = create_namespace(node.control_plane)
    restrict(node.control_plane, name)
    yield name
    delete_namespace(node.control_plane, name)


@pytest.fixture(scope="session")
def probe_image(request: pytest.FixtureRequest, shared_node: Node, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image of test pods, on the node. Returns its name."""
    return once_a_run(request, _PROBE_IMAGE, lambda: _loaded(shared_node, tmp_path_factory.mktemp("probe-image")))


@contextmanager
def _loaded(node: Node, folder: Path) -> Iterator[str]:
    tar = folder / "probe.tar"
    build_images(["probe"], tar)
    node.import_image(tar)
    tar.unlink()
    yield reference("probe")
