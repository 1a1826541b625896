"""The operator on a real control plane: with the chart's own RBAC and release file, in process or as a child.

There is no kubelet: ``Kubelet`` writes into pods' status what one would report, and the real controllers of Jobs and
Deployments draw their conclusions.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from support.cluster_fixtures import install_crd
from support.cluster_programs import cluster_program
from support.control_plane import ControlPlane
from support.processes import Child, serving
from support.scripted_operator import FACTS_VARIABLE, NEXT_VERSION_VARIABLE, PRELOADS_VARIABLE

Json = dict[str, Any]

ROOT = Path(__file__).parents[2]
CRD = ROOT / "charts/premoe-crds/templates/prunedmodels.yaml"
CHART = ROOT / "charts/premoe"
MODEL_ID = "blake3:" + "ab" * 32
PATTERN_SET = "blake3:" + "cd" * 32
FACTS: Json = {"family": "tiny-moe", "layer_experts": (16,) * 4, "top_k": 4, "blob_bytes": 8192}
MODELS = "prunedmodels"

_PATHS = {
    "prunedmodels": "apis/premoe.dev/v1alpha1",
    "deployments": "apis/apps/v1",
    "replicasets": "apis/apps/v1",
    "controllerrevisions": "apis/apps/v1",
    "jobs": "apis/batch/v1",
    "networkpolicies": "apis/networking.k8s.io/v1",
    "poddisruptionbudgets": "apis/policy/v1",
    "certificates": "apis/cert-manager.io/v1",
    "leases": "apis/coordination.k8s.io/v1",
    "events.k8s.io": "apis/events.k8s.io/v1",
}


def path(namespace: str, plural: str, name: str = "", subresource: str = "") -> str:
    """Path of a collection or an object."""
    base = _PATHS.get(plural, "api/v1")
    parts = [base, "namespaces", namespace, plural.split(".")[0], name, subresource]
    return "/" + "/".join(part for part in parts if part)


@dataclass(frozen=True)
class Site:
    """A namespace in which an operator may act: CRD, RBAC, Lease and release file are there."""

    cluster: ControlPlane
    namespace: str
    folder: Path
    kubeconfig: Path

    @property
    def release_file(self) -> Path:
        return self.folder / "release.json"

    @property
    def facts_file(self) -> Path:
        return self.folder / "facts.json"

    @property
    def preloads_file(self) -> Path:
        return self.folder / "preloads.json"

    def set_preloads(self, host: str, *workers: Json) -> None:
        """What the workers behind a name keep resident: wanted, done, problem."""
        _replace(self.preloads_file, {host: workers})

    def set_facts(self, packs: Mapping[str, Json] | None) -> None:
        """What the expert store knows; ``None``: it does not answer."""
        if packs is None:
            self.facts_file.unlink(missing_ok=True)
        else:
            _replace(self.facts_file, packs)

    def create(self, plural: str, obj: Json) -> Json:
        return self._send("POST", path(self.namespace, plural), json=obj)

    def patch(self, plural: str, name: str, patch: Json, subresource: str = "") -> Json:
        """Merge patch."""
        where = path(self.namespace, plural, name, subresource)
        headers = {"Content-Type": "application/merge-patch+json"}
        return self._send("PATCH", where, content=json.dumps(patch), headers=headers)

    def get(self, plural: str, name: str) -> Json | None:
        return self.cluster.get(path(self.namespace, plural, name))

    def list(self, plural: str, selector: str = "") -> list[Json]:
        query = f"?labelSelector={selector}" if selector else ""
        items: list[Json] = (self.cluster.get(path(self.namespace, plural) + query) or {})["items"]
        return items

    def delete(self, plural: str, name: str) -> None:
        self._send("DELETE", path(self.namespace, plural, name))

    def model(self, name: str) -> Json:
        found = self.get(MODELS, name)
        assert found is not None, f"PrunedModel {name} does not exist"
        return found

    def condition(self, name: str, kind: str) -> Json:
        """A condition; empty when there is none of that type."""
        conditions = (self.get(MODELS, name) or {}).get("status", {}).get("conditions", [])
        return next((entry for entry in conditions if entry["type"] == kind), {})

    def wait_for(self, name: str, kind: str, status: str, reason: str = "", timeout_s: float = 60.0) -> Json:
        """Wait for a condition with that status (and reason) about the present spec."""

        def holds() -> bool:
            found = self.condition(name, kind)
            generation = self.model(name)["metadata"]["generation"]
            return (
                found.get("status") == status
                and found.get("reason") in (reason or found.get("reason"),)
                and found["observedGeneration"] == generation
            )

        wait(holds, timeout_s, lambda: f"{kind}={status} {reason}; have {json.dumps(self.model(name).get('status'))}")
        return self.condition(name, kind)

    def _send(self, method: str, where: str, **options: Any) -> Json:
        response = self.cluster.request(method, where, **options)
        if response.status_code == 404:
            raise Gone(f"{method} {where}: {response.text}")
        assert response.is_success, f"{method} {where}: {response.status_code} {response.text}"
        answer: Json = response.json()
        return answer


def _replace(path: Path, document: object) -> None:
    """Write JSON that a running operator may read at any moment."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(document))
    partial.replace(path)


class Gone(AssertionError):
    """The object does not exist, or no longer."""


def wait(holds: Callable[[], bool], timeout_s: float, what: Callable[[], str]) -> None:
    """Poll until it holds. Raises AssertionError with what was waited for."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what()}"
        time.sleep(0.05)


def make_site(
    cluster: ControlPlane, namespace: str, folder: Path, *, watch: str | None = None, values: Sequence[str] = ()
) -> Site:
    """Install the CRD, and what the chart with those values gives the operator. ``watch`` empty: all namespaces."""
    install_crd(cluster, CRD.read_text())
    watched = namespace if watch is None else watch
    rendered = render_chart(namespace, watched, values)
    cluster.kubectl("create", "serviceaccount", "op-operator", "-n", namespace)
    wanted = [part for part in rendered if part["kind"] != "ConfigMap"]
    cluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(wanted))
    site = Site(cluster, namespace, folder, cluster.service_account_kubeconfig(namespace, "op-operator"))
    config = next(part for part in rendered if part["kind"] == "ConfigMap")
    site.release_file.write_text(config["data"]["release.json"])
    site.set_facts({MODEL_ID: FACTS})
    return site


def render_chart(namespace: str, watched: str, values: Sequence[str] = ()) -> list[Json]:
    """The chart's RBAC, Lease and release file for an operator of that namespace; ``watched`` empty: all."""
    templates = [f"--show-only=templates/operator/{name}.yaml" for name in ("rbac", "lease", "configmap")]
    command = [cluster_program("helm"), "template", "op", str(CHART), "-n", namespace, *templates]
    command += [
        "-f",
        str(CHART / "ci/plain-values.yaml"),
        "--set",
        f"watchNamespaces={{{watched}}}" if watched else "watchNamespaces=null",
    ]
    command += [f"--set={value}" for value in values]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [part for part in yaml.safe_load_all(text) if part]


@contextmanager
def running_operator(
    site: Site, *, identity: str = "replica-0", next_version: bool = False, **settings: object
) -> Iterator[Child]:
    """The operator as a child process, with short times; ``settings`` are fields of OperatorSettings."""
    values: dict[str, object] = {
        "kubeconfig": site.kubeconfig,
        "namespace": site.namespace,
        "watch_namespaces": site.namespace,
        "release_file": site.release_file,
        "http_port": 0,
        "identity": identity,
        "poll_s": 0.5,
        "retry_max_s": 2,
        "lease_duration_s": 6,
        "lease_fence_s": 4,
        "lease_renew_s": 0.5,
        **settings,
    }
    environment = {f"PREMOE_OPERATOR_{name.upper()}": str(value) for name, value in values.items()}
    environment |= {FACTS_VARIABLE: str(site.facts_file), PRELOADS_VARIABLE: str(site.preloads_file)}
    environment |= {NEXT_VERSION_VARIABLE: "1" if next_version else ""}
    environment["PYTHONPATH"] = str(ROOT / "tests")
    with serving("support.scripted_operator", [], environment) as child:
        try:
            yield child
        except BaseException:
            print(child.stderr())  # pytest shows it with the failure
            raise


def pruned_model(name: str, **spec: Any) -> Json:
    """A PrunedModel without tasks; ``spec`` replaces parts of its spec."""
    default = {"model": {"uri": "hf://premoe/tiny-moe", "revision": "0123456789abcdef" * 2 + "01234567"}}
    return {
        "apiVersion": "premoe.dev/v1alpha1",
        "kind": "PrunedModel",
        "metadata": {"name": name},
        "spec": {**default, "budget": "4/8", **spec},
    }


class Kubelet:
    """Reports for the pods of a namespace what a kubelet would."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def pods(self, model: str, component: str) -> list[Json]:
        """Pods that are not being deleted."""
        selector = f"premoe.dev/model={model},app.kubernetes.io/component={component}"
        found = self._site.list("pods", selector)
        return [pod for pod in found if not pod["metadata"].get("deletionTimestamp")]

    def wait_for_pods(self, model: str, component: str, count: int = 1, timeout_s: float = 60.0) -> list[Json]:
        found: list[Json] = []

        def enough() -> bool:
            found[:] = self.open_pods(model, component)
            return len(found) >= count

        wait(
            enough,
            timeout_s,
            lambda: f"{count} {component} pods of {model}; status {json.dumps(self._site.model(model).get('status'))}",
        )
        return found

    def open_pods(self, model: str, component: str) -> list[Json]:
        """Pods that have not ended."""
        pods = self.pods(model, component)
        return [pod for pod in pods if pod.get("status", {}).get("phase") not in ("Succeeded", "Failed")]

    def end(self, pod: Json, words: Json | str, exit_code: int = 0, reason: str = "") -> None:
        """The pod's container ends with those last words."""
        message = words if isinstance(words, str) else json.dumps(words)
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        terminated = {
            "exitCode": exit_code,
            "message": message,
            "reason": reason or ("Completed" if exit_code == 0 else "Error"),
            "startedAt": now,
            "finishedAt": now,
        }
        self.report(pod, phase="Succeeded" if exit_code == 0 else "Failed", state={"terminated": terminated})

    def run(self, pod: Json) -> None:
        """The pod's container runs and is ready."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        ready = [
            {"type": kind, "status": "True", "lastTransitionTime": now}
            for kind in ("PodScheduled", "Initialized", "ContainersReady", "Ready")
        ]
        self.report(pod, phase="Running", state={"running": {"startedAt": now}}, conditions=ready, ready=True)

    def wait_reason(self, pod: Json, reason: str, message: str) -> None:
        """The pod's container waits."""
        self.report(pod, phase="Pending", state={"waiting": {"reason": reason, "message": message}}, scheduled=True)

    def report(
        self,
        pod: Json,
        *,
        phase: str,
        state: Json,
        conditions: list[Json] | None = None,
        ready: bool = False,
        scheduled: bool = False,
    ) -> None:
        container = pod["spec"]["containers"][0]
        status: Json = {
            "phase": phase,
            "containerStatuses": [
                {
                    "name": container["name"],
                    "image": container["image"],
                    "imageID": "",
                    "ready": ready,
                    "restartCount": 0,
                    "state": state,
                }
            ],
        }
        if conditions is not None or scheduled or phase in ("Succeeded", "Failed"):
            status["conditions"] = conditions or [{"type": "PodScheduled", "status": "True"}]
        self._site.patch("pods", pod["metadata"]["name"], {"status": status}, "status")

    def bind(self, pod: Json) -> None:
        """Give the pod a node, as the scheduler would."""
        body = {"metadata": {"name": pod["metadata"]["name"]}, "target": {"kind": "Node", "name": "node1"}}
        where = path(self._site.namespace, "pods", pod["metadata"]["name"], "binding")
        response = self._site.cluster.request("POST", where, json=body)
        assert response.is_success, response.text

    def pack(self, model: str) -> None:
        """Run the pack Job to its good end."""
        self.end(self.wait_for_pods(model, "pack")[0], {"modelId": MODEL_ID})

    def profile(self, model: str, tasks: int) -> None:
        """Run the profile Job, all tasks of it, and the patterns Job to their good ends."""
        for _ in range(tasks):
            self.end(self.wait_for_pods(model, "profile")[0], {"task": "any", "profile": "blake3:00"})
        self.end(self.wait_for_pods(model, "patterns")[0], {"patternSet": PATTERN_SET})

    def serve(self, model: str, count: int = 1) -> None:
        """Run the model's workers until its Deployment says that so many are there and ready."""

        def ready() -> bool:
            for pod in self.open_pods(model, "worker"):
                if pod.get("status", {}).get("phase") != "Running":
                    with suppress(Gone):
                        self.run(pod)
            return _replicas(self._site.get("deployments", f"{model}-worker")) == (count, count, count)

        wait(
            ready, 60, lambda: f"{count} workers of {model}; status {json.dumps(self._site.model(model).get('status'))}"
        )


def _replicas(deployment: Json | None) -> tuple[int, int, int]:
    """Wanted, there, ready; nothing is ready for a Deployment that its controller has not seen as it is."""
    if deployment is None:
        return (0, 0, 0)
    status: Json = deployment.get("status", {})
    seen = status.get("observedGeneration") == deployment["metadata"]["generation"]
    ready = status.get("readyReplicas", 0) if seen else 0
    return (deployment["spec"]["replicas"], status.get("replicas", 0), ready)
