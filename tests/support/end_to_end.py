"""An installed release with a PrunedModel of the fixture that serves, for end-to-end tests on the node."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
from premoe_local import tasks
from premoe_servicekit.roles import Role, identity

from support.certificates import Authority
from support.charts import CHART, CRD_CHART, install, merged
from support.cluster_fixtures import create_namespace, delete_namespace, restrict
from support.jaeger import Jaeger, running_jaeger
from support.node import Node
from support.node_namespaces import ADDRESS
from support.node_pods import apply
from support.node_release import (
    CHECKPOINT,
    PACKAGES_FOLDER,
    STORE,
    STORE_SECRET,
    Backends,
    describe,
    load_images,
    prerequisites,
    secret,
    start_backends,
    values,
    wait_rollout,
)
from support.process_group import wait_until
from support.processes import command, environ

MODEL = "tiny"
BUDGET = "4/16"
TASKS = ("add", "roman", "rev")
PRELOADED = "rev"
"""Not the task of the first prompt: that one's experts still have to come from the store."""
CALIBRATION_PROMPTS = 48
MAX_TOKENS = 48
READY_TIMEOUT_S = 400.0
TLS_SECRET = "mesh-tls"
KEY_SECRET = "blob-addresses"
REFERENCE = """
import json, sys
from premoe_local.mesh import running
from premoe_local.mesh_options import MeshOptions
with running(MeshOptions(model=sys.argv[1], budget=sys.argv[2], threads=1, context_length=512)) as mesh:
    print(json.dumps(mesh.worker_addresses[0]), flush=True)
    sys.stdin.read()
"""


@dataclass(frozen=True, slots=True)
class Ground:
    """What releases stand on."""

    node: Node
    backends: Backends
    jaeger: Jaeger


@dataclass(frozen=True, slots=True)
class Release:
    """An installed release with a PrunedModel that serves. To be used within the node's network."""

    node: Node
    namespace: str
    backends: Backends
    jaeger: Jaeger
    store: str
    """URL of its object store."""

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """An object of the release's namespace."""
        found: dict[str, Any] = json.loads(self.node.kubectl("get", kind, name, "-n", self.namespace, "-o", "json"))
        return found

    def pods(self, component: str) -> list[dict[str, Any]]:
        """The pods of a component."""
        label = f"app.kubernetes.io/component={component}"
        listed = self.node.kubectl("get", "pods", "-n", self.namespace, "-l", label, "-o", "json")
        found: list[dict[str, Any]] = json.loads(listed)["items"]
        return found

    def address(self, component: str) -> str:
        """The address of a pod of a component that is ready, and stays. Raises AssertionError without one."""
        found = [str(pod["status"]["podIP"]) for pod in self.pods(component) if _stays(pod)]
        assert found, f"no pod of {component} is ready; {len(self.pods(component))} are not, or are going"
        return found[0]

    def condition(self, kind: str) -> str:
        """Status of a condition of the PrunedModel; empty when it has none of that type."""
        conditions = self.get("prunedmodel", MODEL).get("status", {}).get("conditions", [])
        return next((str(one["status"]) for one in conditions if one["type"] == kind), "")

    def openai(self) -> openai.OpenAI:
        """A client of the gateway."""
        address = self.get("service", "premoe-gateway")["spec"]["clusterIP"]
        url = f"http://{address}:8000/v1"
        return openai.OpenAI(base_url=url, api_key="none", timeout=120, max_retries=0)

    def generate(self, prompt: str, address: str) -> dict[str, Any]:
        """What `premoe generate` prints of a worker's answer."""
        arguments = ["generate", prompt, "--address", address, "--max-tokens", str(MAX_TOKENS), "--json"]
        done = subprocess.run(
            command("premoe_local.cli", arguments), env=environ(), capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def wait_served(self) -> None:
        """Wait until the PrunedModel is Ready and the gateway serves it. Raises AssertionError with what is seen."""
        api = self.openai()
        try:
            wait_until(lambda: self.condition("Ready") == "True", READY_TIMEOUT_S, "the PrunedModel", poll_s=1)
            wait_until(lambda: [model.id for model in api.models.list()] == [MODEL], 90, "the gateway", poll_s=1)
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{describe(self.node, self.namespace)}") from None

    def replace_worker(self) -> None:
        """Delete the worker's pod and wait until another one serves."""
        (pod,) = self.pods("worker")
        self.node.kubectl("delete", "pod", "-n", self.namespace, pod["metadata"]["name"], "--grace-period=1")
        wait_until(lambda: self.condition("Ready") == "True" and self._only_worker_ready(), READY_TIMEOUT_S, "a worker")
        self.wait_served()

    def _only_worker_ready(self) -> bool:
        pods = self.pods("worker")
        return len(pods) == 1 and all(
            one["ready"] for one in pods[0]["status"].get("containerStatuses", [{"ready": 0}])
        )

    @contextmanager
    def reference(self) -> Iterator[str]:
        """A worker outside Kubernetes over the same pack and patterns, as `premoe generate --model` starts it."""
        environment = environ({**self.backends.environment, "OMP_NUM_THREADS": "1"})
        with subprocess.Popen(
            [sys.executable, "-c", REFERENCE, self.store, BUDGET],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())
            process.stdin.close()


@contextmanager
def running_ground(node: Node, folder: Path) -> Iterator[Ground]:
    """Images, object store with the checkpoint, cache and Jaeger. Within the node's network."""
    with running_jaeger(folder / "jaeger", host=ADDRESS) as jaeger:
        backends = start_backends(node, folder)
        load_images(node, folder)
        install(node.control_plane, CRD_CHART, "default", release="premoe-crds")
        yield Ground(node, backends, jaeger)


@contextmanager
def running_release(ground: Ground, *, mutual_tls: bool = False) -> Iterator[Release]:
    """Install the chart, apply the PrunedModel, wait until clients are served. Raises AssertionError with findings.

    Within the node's network.
    """
    with prepared_namespace(ground) as namespace:
        if mutual_tls:
            key = secret(KEY_SECRET, {"keys": secrets.token_hex(32)})
            apply(ground.node, namespace, certificates(namespace, Authority()), key)
        release = installed(ground, namespace, f"{STORE}/{namespace}", secured() if mutual_tls else {})
        apply(ground.node, namespace, *map(calibration, TASKS), pruned_model())
        release.wait_served()
        yield release


def secured() -> dict[str, Any]:
    """Values of a release with mutual TLS; workers read experts by HTTPS alone, from the memory of replicas that share
    a key."""
    by_https = {"name": "PREMOE_WORKER_FETCH_SCHEMES", "value": "http"}
    return {
        "tls": {"mode": "Secret", "secretName": TLS_SECRET},
        "expertStore": {
            "cache": {"medium": "memory", "size": "256Mi"},
            "http": {"urlKey": {"existingSecret": KEY_SECRET}},
        },
        "worker": {"extraEnv": [{"name": "PYTHONPATH", "value": PACKAGES_FOLDER}, by_https]},
    }


@contextmanager
def prepared_namespace(ground: Ground) -> Iterator[str]:
    """A namespace with what a release expects there; deleted at the end. Within the node's network."""
    cluster = ground.node.control_plane
    namespace = create_namespace(cluster, "e2e")
    restrict(cluster, namespace)
    apply(ground.node, namespace, *prerequisites(namespace, ground.backends))
    yield namespace
    with ground.node.network():
        delete_namespace(cluster, namespace)


def installed(ground: Ground, namespace: str, store: str, changed: dict[str, Any]) -> Release:
    """Install the chart with changed values over the object store at ``store``, and wait for its Deployments.

    Raises AssertionError with findings.
    """
    chosen = {
        **values(ground.node, ground.jaeger.otlp_endpoint),
        "objectStore": {"url": store, "existingSecret": STORE_SECRET},
        # Each release has its own namespace, and leaves the others' PrunedModels alone.
        "watchNamespaces": [namespace],
        "tests": {"model": MODEL, "prompt": prompts(1)[0]},
    }
    chosen = merged(chosen, changed)
    install(ground.node.control_plane, CHART, namespace, chosen)
    enabled = ["operator"] if chosen["operator"].get("enabled", True) else []
    deployed = [f"premoe-{name}" for name in (*enabled, "retrieval", "expert-store", "gateway")]
    wait_rollout(ground.node, namespace, deployed)
    return Release(ground.node, namespace, ground.backends, ground.jaeger, store)


def certificates(namespace: str, authority: Authority, *services: str) -> dict[str, Any]:
    """A Secret with one certificate for all parts of a release, and its authority.

    ``services``: those that other releases call by their own names.
    """
    uris = [identity(f"premoe.{namespace}", role) for role in Role]
    names = [f"premoe.{namespace}.svc", *(f"{service}.{namespace}.svc" for service in services)]
    pair = authority.issue(*names, addresses=(), uris=uris)
    content = {"tls.crt": pair.cert, "tls.key": pair.key, "ca.crt": authority.pem}
    return secret(TLS_SECRET, {name: pem.decode() for name, pem in content.items()})


def calibration(task: str) -> dict[str, Any]:
    """A ConfigMap with prompts of a task."""
    lines = [
        json.dumps({"prompt": example.prompt, "answer": example.answer})
        for example in tasks.examples(task, "calibration", CALIBRATION_PROMPTS)
    ]
    data = {"data.jsonl": "\n".join(lines) + "\n"}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"calibration-{task}"}, "data": data}


def prompts(count: int = 2) -> list[str]:
    """Prompts that calibration never saw, ``count`` a task, tasks taking turns."""
    drawn = [tasks.examples(task, "test", count) for task in TASKS]
    return [examples[number].prompt for number in range(count) for examples in drawn]


def pruned_model() -> dict[str, Any]:
    """The fixture with three tasks."""
    resources = {"requests": {"cpu": "50m", "memory": "512Mi"}, "limits": {"memory": "2Gi"}}
    listed = [
        {"name": task, "calibration": {"configMap": {"name": f"calibration-{task}", "key": "data.jsonl"}}}
        for task in TASKS
    ]
    return {
        "apiVersion": "premoe.dev/v1alpha1",
        "kind": "PrunedModel",
        "metadata": {"name": MODEL},
        "spec": {
            "model": {"uri": CHECKPOINT},
            "budget": BUDGET,
            "patterns": {"tasks": listed, "preload": [PRELOADED]},
            "engine": {"threads": 1, "contextLength": 512, "maxSequences": 2},
            "workers": {"resources": resources, "startupTimeoutSeconds": 300, "drainTimeoutSeconds": 20},
            "jobs": {"resources": resources, "timeoutSeconds": 600},
        },
    }


def _stays(pod: Mapping[str, Any]) -> bool:
    """Whether a pod is ready and nobody has deleted it: one that is being replaced refuses connections."""
    conditions = {one["type"]: one["status"] for one in pod["status"].get("conditions", [])}
    return "deletionTimestamp" not in pod["metadata"] and conditions.get("Ready") == "True"
