"""pytest fixtures of the cluster tests; import them by name where they are used.

from support.cluster_fixtures import control_plane, namespace

__all__ = ["control_plane", "namespace"]
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import TypeVar

import pytest
import yaml

from support.cluster_programs import ClusterMissing, cluster_program
from support.control_plane import PROGRAMS, ControlPlane, running_control_plane
from support.process_group import wait_until

T = TypeVar("T")
_SHARED: pytest.StashKey[ControlPlane] = pytest.StashKey()


def once_a_run(
    request: pytest.FixtureRequest, key: pytest.StashKey[T], make: Callable[[], AbstractContextManager[T]]
) -> T:
    """A value that all modules of a run share, closed when the run ends.

    A session fixture does not do that: pytest sets it up anew for every module that imports it.
    """
    stash = request.config.stash
    if key not in stash:
        stack = ExitStack()
        stash[key] = stack.enter_context(make())
        request.config.add_cleanup(stack.close)
    return stash[key]


def require_programs(*names: str) -> None:
    """Skip where a program of the cluster is not built, and fail where REQUIRE_CLUSTER=1 says that it must be."""
    try:
        for name in names:
            cluster_program(name)
    except ClusterMissing as error:
        if os.environ.get("REQUIRE_CLUSTER") == "1":
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def control_plane(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ControlPlane:
    """The control plane that all tests of a run share; it ends with the run."""
    require_programs(*PROGRAMS)
    return once_a_run(request, _SHARED, lambda: running_control_plane(tmp_path_factory.mktemp("control-plane")))


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    """A fresh namespace in which pods can be created; its deletion is not waited for."""
    control_plane.check()
    name = create_namespace(control_plane)
    yield name
    delete_namespace(control_plane, name)


@pytest.fixture
def restricted_namespace(control_plane: ControlPlane, namespace: str) -> str:
    """A fresh namespace that refuses pods which break the `restricted` pod security standard."""
    restrict(control_plane, namespace)
    return namespace


def create_namespace(cluster: ControlPlane, prefix: str = "test") -> str:
    """Create a namespace of a unique name and wait for its ServiceAccount; returns the name."""
    name = f"{prefix}-{secrets.token_hex(4)}"
    body = {"metadata": {"name": name}}
    cluster.request("POST", "/api/v1/namespaces", json=body).raise_for_status()
    account = f"/api/v1/namespaces/{name}/serviceaccounts/default"
    wait_until(lambda: cluster.get(account) is not None, 30, f"the ServiceAccount of {name}", cluster.processes)
    return name


def delete_namespace(cluster: ControlPlane, name: str) -> None:
    """Ask for the deletion of a namespace with all that is in it, and return at once."""
    cluster.request("DELETE", f"/api/v1/namespaces/{name}")


def install_crd(cluster: ControlPlane, manifest: str) -> None:
    """Apply a CustomResourceDefinition (YAML or JSON) and wait until it serves."""
    name = yaml.safe_load(manifest)["metadata"]["name"]
    known = cluster.get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}") is not None
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=manifest)
    cluster.kubectl("wait", "--for=condition=Established", f"crd/{name}", "--timeout=30s")
    if not known:
        # The garbage collector looks for new kinds rarely: what their objects own would stay for up to a minute.
        cluster.restart_controller_manager()


def restrict(cluster: ControlPlane, namespace: str) -> None:
    """Enforce the `restricted` pod security standard in a namespace."""
    cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted", "--overwrite")
