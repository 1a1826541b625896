"""One store and one mesh for all tests that do not break them."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from premoe_local.mesh import Mesh
from support.mesh import mesh_over, prepare_store

# A runner started in the background ignores SIGINT, and children would inherit that: Ctrl-C tests need the default.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def store_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with a packed tiny model and a live pattern set."""
    return prepare_store(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def mesh(store_url: str) -> Iterator[Mesh]:
    """A running mesh that tests share; they must leave it as they found it."""
    with mesh_over(store_url) as running:
        yield running
