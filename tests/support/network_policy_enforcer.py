"""Keeps the node's packet filter equal to the NetworkPolicies of its API server."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import httpx

from support.control_plane import ControlPlane
from support.network_policies import rules_of_pods, ruleset

INTERVAL_S = 0.25
PATHS = ("/apis/networking.k8s.io/v1/networkpolicies", "/api/v1/pods", "/api/v1/namespaces")


class Enforcer:
    """Lists policies, pods and namespaces again and again; a pod's rules follow its address by at most a second."""

    def __init__(self, cluster: ControlPlane, network: Callable[[], AbstractContextManager[None]]) -> None:
        self._cluster = cluster
        self._network = network
        self._stop = threading.Event()
        self._applied = ""
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="network-policies", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def check(self) -> None:
        """Raises RuntimeError when the rules could not be set, so that no probe passes for want of rules."""
        if self._error is not None:
            raise RuntimeError("network policies are not enforced") from self._error

    @property
    def applied(self) -> str:
        """The ruleset in force."""
        return self._applied

    def _run(self) -> None:
        try:
            with self._network():
                while not self._stop.wait(INTERVAL_S):
                    self._round()
        except BaseException as error:
            self._error = error

    def _round(self) -> None:
        try:
            policies, pods, namespaces = (self._list(path) for path in PATHS)
        except httpx.HTTPError:
            # The API server may be away: rules stay as they are.
            return
        script = ruleset(rules_of_pods(policies, pods, namespaces))
        if script != self._applied:
            subprocess.run(["nft", "-f", "-"], input=script, text=True, check=True, capture_output=True)
            self._applied = script

    def _list(self, path: str) -> list[dict[str, Any]]:
        # Version 0 is answered from the API server's memory.
        answer = self._cluster.request("GET", path, params={"resourceVersion": "0"})
        items: list[dict[str, Any]] = answer.raise_for_status().json()["items"]
        return items


@contextmanager
def enforcing(cluster: ControlPlane, network: Callable[[], AbstractContextManager[None]]) -> Iterator[Enforcer]:
    """Enforce until the block ends; ``network`` enters the node's network."""
    enforcer = Enforcer(cluster, network)
    enforcer.start()
    try:
        yield enforcer
    finally:
        enforcer.stop()
