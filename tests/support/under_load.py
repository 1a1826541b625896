"""What is done to a release while a client asks at a fixed rate: rollout, operator restart, upgrade, worker killed."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from support.charts import CHART, helm, install
from support.end_to_end import MODEL, Release, prompts
from support.metrics import scrape
from support.node import CTR
from support.node_release import describe, wait_rollout
from support.open_loop import Load, Request
from support.process_group import wait_until

CLUSTER_DNS = "10.96.0.10:53"
TIMEOUT_S = 180.0
SCRAPE_S = 0.5
NEXT_VERSION = {
    "logLevel": "debug",
    "worker": {"image": {"tag": "next"}, "extraEnv": [{"name": "NEXT_VERSION", "value": "1"}]},
}
"""Values whose operator starts anew, and would give new templates another image and another variable."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker's pod as the API server has it."""

    uid: str
    container: str
    """Id that the container runtime gave its container; empty before there is one."""
    restarts: int
    ready: bool


@dataclass(frozen=True, slots=True)
class Kill:
    """A worker killed without notice."""

    pod: str
    at: float
    """CLOCK_MONOTONIC."""
    recovered_s: float
    """Until all workers were Ready again."""


def load(release: Release, rate: float, max_tokens: int) -> Load:
    """Requests for the target that the PrunedModel's status names, looked up in the cluster's DNS as a pod would."""
    published = str(release.get("prunedmodel", MODEL)["status"]["endpoints"]["grpc"])
    target = published.replace("dns:///", f"dns://{CLUSTER_DNS}/").replace(".svc:", ".svc.cluster.local:")
    return Load(target, prompts(1)[0], rate, max_tokens)


def set_workers(release: Release, changed: Mapping[str, Any]) -> None:
    """Change fields of the PrunedModel's ``workers``."""
    patch = json.dumps({"spec": {"workers": changed}})
    release.node.kubectl("patch", "prunedmodel", MODEL, "-n", release.namespace, "--type=merge", "-p", patch)


def scale(release: Release, replicas: int) -> None:
    """Set the number of workers and wait until all are Ready and no other is left. Raises AssertionError."""
    set_workers(release, {"replicas": replicas})
    _wait(release, lambda: _ready(release) == replicas, f"{replicas} workers")
    _wait(release, lambda: len(release.pods("worker")) == replicas, "the end of other workers")


def roll_workers(release: Release) -> float:
    """Change the workers' template; seconds until all are new and the last old one is gone. Raises AssertionError."""
    old = set(workers(release))
    begin = time.monotonic()
    set_workers(release, {"annotations": {"example.com/rolled": secrets.token_hex(4)}})
    _wait(
        release,
        lambda: not old & set(workers(release)) and _ready(release) == len(old),
        "the workers' rollout",
    )
    return time.monotonic() - begin


def restart_operator(release: Release) -> None:
    """Delete the operator's pods and wait until one of their successors acts. Raises AssertionError."""
    old = {pod["metadata"]["name"] for pod in release.pods("operator")}
    arguments = ("-l", "app.kubernetes.io/component=operator", "-n", release.namespace)
    release.node.kubectl("delete", "pods", *arguments, "--wait=false")
    _wait_operator(release, old)


def upgrade_operator(release: Release, changed: Mapping[str, Any]) -> None:
    """``helm upgrade`` to changed values, until pods of the new template act. Raises AssertionError, HelmFailed."""
    old = {pod["metadata"]["name"] for pod in release.pods("operator")}
    cluster = release.node.control_plane
    install(cluster, CHART, release.namespace, changed, verb=("upgrade",), flags=("--reuse-values",))
    _wait_operator(release, old)


def roll_back(release: Release) -> None:
    """``helm rollback`` to the values before, until that is rolled out. Raises AssertionError, HelmFailed."""
    helm("rollback", "premoe", "-n", release.namespace, kubeconfig=release.node.control_plane.kubeconfig)
    listed = release.node.kubectl("get", "deployments", "-n", release.namespace, "-o", "name")
    wait_rollout(release.node, release.namespace, [name.removeprefix("deployment.apps/") for name in listed.split()])


def kill_worker(release: Release) -> Kill:
    """SIGKILL a worker, and wait until all are Ready again. Raises AssertionError.

    It is one that was killed least often: the kubelet takes its time with containers that end again and again.
    """
    name, victim = min(workers(release).items(), key=lambda item: item[1].restarts)
    release.node.run(*CTR, "tasks", "kill", "--signal", "SIGKILL", victim.container)
    at = time.monotonic()

    def recovered() -> bool:
        seen = workers(release)
        return seen[name].restarts > victim.restarts and all(worker.ready for worker in seen.values())

    _wait(release, recovered, "the killed worker")
    return Kill(name, at, time.monotonic() - at)


@contextmanager
def scraping(release: Release, count: int) -> Iterator[list[float]]:
    """Read the gateway's metrics again and again; yields how many workers it said were up, each time.

    Before and after there are ``count``. Raises AssertionError, and what a scrape raises.
    """
    address, seen, ended = f"{release.address('gateway')}:50054", list[float](), threading.Event()

    def up() -> float:
        return scrape(address).value("premoe:gateway_worker_up")

    def read() -> None:
        while not ended.wait(SCRAPE_S):
            seen.append(up())

    _wait(release, lambda: up() == count, f"{count} workers in the gateway's metrics")
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        try:
            yield seen
        finally:
            ended.set()
        reading.result()
    _wait(release, lambda: up() == count, f"{count} workers in the gateway's metrics again")


def workers(release: Release) -> dict[str, Worker]:
    """Of each worker's pod, by name."""
    found = {}
    for pod in release.pods("worker"):
        (status,) = pod["status"].get("containerStatuses") or [{"restartCount": 0, "ready": False}]
        container = status.get("containerID", "").removeprefix("containerd://")
        found[pod["metadata"]["name"]] = Worker(
            pod["metadata"]["uid"], container, status["restartCount"], status["ready"]
        )
    return found


def generations(release: Release) -> dict[str, int]:
    """Generations of the PrunedModel and of its Deployment: whoever changes a spec counts them up."""
    objects = (("prunedmodel", MODEL), ("deployment", f"{MODEL}-worker"))
    return {kind: release.get(kind, name)["metadata"]["generation"] for kind, name in objects}


def answered_by(release: Release, request: Request) -> set[str]:
    """Pods of workers that reported work on a request. One that was killed meanwhile reports nothing."""
    spans = release.jaeger.trace(request.trace_id)
    return {str(span.resource["k8s.pod.name"]) for span in spans if span.service == "premoe-worker"}


def _ready(release: Release) -> int:
    """Workers that serve, once the operator has seen the last change and calls the PrunedModel Ready; else -1."""
    model = release.get("prunedmodel", MODEL)
    status = model.get("status", {})
    seen = status.get("observedGeneration") == model["metadata"]["generation"]
    if not seen or release.condition("Ready") != "True":
        return -1
    serving, _, wanted = status["workersSummary"].partition("/")
    return int(serving) if serving == wanted else -1


def _wait(release: Release, condition: Callable[[], bool], what: str) -> None:
    try:
        wait_until(condition, TIMEOUT_S, what, release.node.group, poll_s=0.5)
    except TimeoutError as error:
        raise AssertionError(f"{error}\n{describe(release.node, release.namespace)}") from None


def _wait_operator(release: Release, old: set[str]) -> None:
    """Wait until a pod that is not among the old ones holds the Lease and all are rolled out."""
    wait_rollout(release.node, release.namespace, ["premoe-operator"])

    def acts() -> bool:
        holder = release.get("lease", "premoe-operator").get("spec", {}).get("holderIdentity", "")
        return holder in {pod["metadata"]["name"] for pod in release.pods("operator")} - old

    _wait(release, acts, "an operator that acts")
