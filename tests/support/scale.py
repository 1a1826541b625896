"""Many PrunedModels on a control plane with fake pods: how long, how much memory, how many calls.

figures = run_scale(cluster, folder, models=50, workers_each=10, writes=20, quiet_s=20)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

from support.control_plane import ControlPlane
from support.kwok import running_kwok
from support.operator_process import MODEL_ID, MODELS, Json, Site, make_site, path, pruned_model, running_operator
from support.processes import Child

PODS_PER_NODE = 1000
CREATES_PER_S = 20.0
RESTARTS_MAX = 5
_POLL_S = 0.02
_READY_POLL_S = 10.0
"""A list of a thousand PrunedModels keeps the API server busy for a second."""

# KWOK ends the pods of Jobs without last words, and the operator learns the model id from these. A stage with a weight
# wins over the built-in one, which has none.
PACKED_STAGE = f"""
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata:
  name: pod-packed
spec:
  weight: 1
  resourceRef:
    apiGroup: v1
    kind: Pod
  selector:
    matchLabels:
      app.kubernetes.io/component: pack
    matchExpressions:
    - key: .metadata.deletionTimestamp
      operator: DoesNotExist
    - key: .status.phase
      operator: In
      values: [Running]
  next:
    statusTemplate: |
      {{{{ $now := Now }}}}
      containerStatuses:
      {{{{ range $index, $item := .spec.containers }}}}
      - image: {{{{ $item.image | Quote }}}}
        name: {{{{ $item.name | Quote }}}}
        ready: false
        restartCount: 0
        started: false
        state:
          terminated:
            exitCode: 0
            finishedAt: {{{{ $now | Quote }}}}
            message: '{{"modelId": "{MODEL_ID}"}}'
            reason: Completed
            startedAt: {{{{ $now | Quote }}}}
      {{{{ end }}}}
      phase: Succeeded
"""


@dataclass(frozen=True, slots=True)
class ScaleFigures:
    """What a run showed. Times in seconds, memory in MiB."""

    models: int
    pods: int
    converge_s: float
    """From the first create to the last Ready."""
    observed_s: tuple[float, ...]
    """From a write of a spec to its observedGeneration in the status, one write a second."""
    operator_rss_mib: float
    """Resident memory of the operator after all that."""
    quiet_s: float
    quiet_calls: int
    """Calls of the operator in that time in which nothing changed, Leases and open watches left out."""
    restarts: int
    """How often the operator ended, as it does where its Lease cannot be renewed in time, and was started again."""


def run_scale(
    cluster: ControlPlane,
    namespace: str,
    folder: Path,
    *,
    models: int,
    workers_each: int,
    writes: int,
    quiet_s: float,
    timeout_s: float,
    clean_up: bool = True,
    tell: Callable[[str], None] = lambda text: None,
) -> ScaleFigures:
    """Create the models, wait until all are Ready, write to some of them, then watch a quiet time.

    Without ``clean_up`` the pods stay, for a control plane that ends with them.
    """
    site = make_site(cluster, namespace, folder)
    stage = folder / "packed-stage.yaml"
    stage.write_text(PACKED_STAGE)
    nodes = -(-models * (workers_each + 1) // PODS_PER_NODE) + 1
    with running_kwok(cluster, nodes=nodes, pods_per_node=PODS_PER_NODE, stages=[stage], clean_up=clean_up):
        with _KeptOperator(site, tell) as operator:
            started = time.monotonic()
            _create(site, models, workers_each)
            tell(f"{models} models created in {time.monotonic() - started:.0f} s")
            _wait_ready(site, models, started + timeout_s, operator, tell)
            converge_s = time.monotonic() - started
            observed_s = tuple(_observed_after_write(site, number % models) for number in _paced(writes, 1.0))
            pods = len(site.list("pods", "app.kubernetes.io/component=worker"))
            quiet_calls = _quiet_calls(cluster, namespace, quiet_s)
            rss_mib = psutil.Process(operator.running().process.pid).memory_info().rss / 2**20
        return ScaleFigures(models, pods, converge_s, observed_s, rss_mib, quiet_s, quiet_calls, operator.restarts)


class _KeptOperator:
    """The operator, started again when it has ended, as its Deployment would; looked at whenever ``running`` is asked.

    Its times are those of production: short polls and leases would be the load that is measured here.
    """

    def __init__(self, site: Site, tell: Callable[[str], None]) -> None:
        self.restarts = 0
        self._site = site
        self._tell = tell
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._child = self._start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def running(self) -> Child:
        if self._child.process.poll() is not None:
            self._tell(f"the operator ended: {self._child.stderr().strip().splitlines()[-1]}")
            self.restarts += 1
            assert self.restarts <= RESTARTS_MAX, "the operator keeps ending"
            self._child = self._start()
        return self._child

    def _start(self) -> Child:
        operator = running_operator(self._site, poll_s=10, lease_duration_s=15, lease_fence_s=10, lease_renew_s=2)
        return self._stack.enter_context(operator)


def percentile(values: tuple[float, ...], share: float) -> float:
    """The smallest value that at least that share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1)]


def _name(number: int) -> str:
    return f"model-{number:04d}"


def _create(site: Site, models: int, workers_each: int) -> None:
    for number in _paced(models, 1 / CREATES_PER_S):
        site.create(MODELS, pruned_model(_name(number), workers={"replicas": workers_each}))


def _wait_ready(site: Site, models: int, deadline: float, operator: _KeptOperator, tell: Callable[[str], None]) -> None:
    while True:
        operator.running()
        ready = sum(_is_ready(model) for model in site.list(MODELS))
        tell(f"{ready} of {models} Ready")
        if ready == models:
            return
        assert time.monotonic() < deadline, f"only {ready} of {models} models are Ready"
        time.sleep(_READY_POLL_S)


def _is_ready(model: Json) -> bool:
    return any(
        entry["type"] == "Ready" and entry["status"] == "True"
        for entry in model.get("status", {}).get("conditions", ())
    )


def _observed_after_write(site: Site, number: int) -> float:
    """Change a setting that moves no worker, only names a new pack Job; returns how long until the operator saw it."""
    name = _name(number)
    started = time.monotonic()
    retries = 1 + site.model(name)["spec"].get("jobs", {}).get("retries", 3) % 5
    generation = site.patch(MODELS, name, {"spec": {"jobs": {"retries": retries}}})["metadata"]["generation"]
    while True:
        found = site.cluster.get(path(site.namespace, MODELS, name)) or {}
        if found["status"].get("observedGeneration") == generation:
            return time.monotonic() - started
        assert time.monotonic() < started + 60, f"{name}: generation {generation} was not observed within 60 s"
        time.sleep(_POLL_S)


def _quiet_calls(cluster: ControlPlane, namespace: str, seconds: float) -> int:
    time.sleep(5.0)
    start = cluster.audit_end()
    time.sleep(seconds)
    own = f"system:serviceaccount:{namespace}:"
    calls = (call for call in cluster.audit(start) if call.user.startswith(own))
    return sum(call.resource != "leases" and call.verb != "watch" for call in calls)


@contextmanager
def _slot(seconds: float) -> Iterator[None]:
    end = time.monotonic() + seconds
    yield
    time.sleep(max(0.0, end - time.monotonic()))


def _paced(count: int, seconds: float) -> Iterator[int]:
    """0, 1, …, each at least that long after the one before."""
    for number in range(count):
        with _slot(seconds):
            yield number
