"""A release of the charts on the test node and what it stands on: images, object store, cache, packages of workers."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.control_plane import KubectlFailed
from support.deployable_images import ROOT, TAG, build_images
from support.node import Node
from support.node_namespaces import ADDRESS
from support.process_group import wait_until
from support.servers import find_program

FIXTURE = ROOT / "tests" / "fixtures" / "tiny-moe"
S3_PORT = 7070
REDIS_PORT = 6379
STORE = "s3://store/premoe"
CHECKPOINT = "s3://models/tiny-moe"
OTHER_CHECKPOINT = "s3://models/tiny-moe-natural"
"""One of the same shape with other weights."""
KEYS = {"AWS_ACCESS_KEY_ID": "test-access", "AWS_SECRET_ACCESS_KEY": "test-secret"}
STORE_SECRET = "object-store"
CACHE_SECRET = "cache"
PACKAGES = "packages"
"""Claim of the volume with the worker's packages, and its name in pods."""
PACKAGES_FOLDER = "/opt/packages"
IMAGES = ("operator", "retrieval", "expert-store", "gateway", "worker")
VALUES_OF_IMAGE = {"expert-store": "expertStore"}
PUT = """
import sys
from pathlib import Path
import obstore
from obstore.store import from_url
store = from_url(sys.argv[1], client_options={"allow_http": True})
for path in Path(sys.argv[2]).iterdir():
    obstore.put(store, path.name, path)
"""


@dataclass(frozen=True, slots=True)
class Backends:
    """Object store and cache beside the pods, at the node's address."""

    environment: Mapping[str, str]
    """AWS_* variables that lead to the object store."""
    redis_url: str


def start_backends(node: Node, folder: Path) -> Backends:
    """Start versitygw and Redis inside the node's network, and put two checkpoints into the store.

    Raises ServerMissing, TimeoutError, CalledProcessError.
    """
    root = folder / "s3"
    for bucket in ("store", "models"):
        (root / bucket).mkdir(parents=True)
    keys = {"ROOT_ACCESS_KEY": KEYS["AWS_ACCESS_KEY_ID"], "ROOT_SECRET_KEY": KEYS["AWS_SECRET_ACCESS_KEY"]}
    gateway = [find_program("versitygw"), "--quiet", "--port", f"{ADDRESS}:{S3_PORT}", "posix", str(root)]
    node.start("versitygw", gateway, keys)
    redis = [find_program("redis-server"), "--bind", ADDRESS, "--port", str(REDIS_PORT), "--protected-mode", "no"]
    node.start("redis", [*redis, "--save", "", "--appendonly", "no", "--dir", str(folder)])
    environment = {
        **KEYS,
        "AWS_ENDPOINT_URL": f"http://{ADDRESS}:{S3_PORT}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
    }
    with node.network():
        wait_until(lambda: _listens(S3_PORT) and _listens(REDIS_PORT), 20, "object store and Redis", node.group)
        for url, fixture in ((CHECKPOINT, FIXTURE), (OTHER_CHECKPOINT, FIXTURE.with_name("tiny-moe-natural"))):
            subprocess.run([sys.executable, "-c", PUT, url, str(fixture)], env={**environment, "PATH": ""}, check=True)
    return Backends(environment, f"redis://{ADDRESS}:{REDIS_PORT}/0")


def load_images(node: Node, folder: Path) -> None:
    """Build the images of every deployable and load them. Raises BuildFailed, AssertionError."""
    tar = folder / "images.tar"
    build_images(IMAGES, tar)
    node.import_image(tar)
    tar.unlink()


def prerequisites(namespace: str, backends: Backends) -> list[dict[str, Any]]:
    """The objects that a release expects in its namespace, and the volume with the worker's packages."""
    volume = f"{PACKAGES}-{namespace}"
    claim = {"accessModes": ["ReadOnlyMany"], "storageClassName": ""}
    return [
        secret(STORE_SECRET, backends.environment),
        secret(CACHE_SECRET, {"url": backends.redis_url}),
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": volume},
            "spec": {
                **claim,
                "capacity": {"storage": "1Gi"},
                "persistentVolumeReclaimPolicy": "Retain",
                "claimRef": {"namespace": namespace, "name": PACKAGES},
                "hostPath": {"path": sysconfig.get_path("purelib"), "type": "Directory"},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": PACKAGES},
            "spec": {**claim, "volumeName": volume, "resources": {"requests": {"storage": "1Gi"}}},
        },
    ]


def secret(name: str, data: Mapping[str, str]) -> dict[str, Any]:
    """A Secret's object."""
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": dict(data)}


def values(node: Node, otlp_endpoint: str = "") -> dict[str, Any]:
    """Values of a release on the node: without TLS, its images, ways to its backends and to the API server only."""
    images: dict[str, Any] = {
        VALUES_OF_IMAGE.get(name, name): {
            "image": {"repository": f"localhost/premoe-{name}", "tag": TAG, "pullPolicy": "Never"}
        }
        for name in IMAGES
    }
    for name in ("operator", "retrieval", "expertStore", "gateway"):
        # Several releases share the processors of a small machine.
        images[name]["resources"] = {"requests": {"cpu": "20m"}}
    images["worker"] |= {
        # Torch comes from this machine; the image's own packages and PreMoE stay behind it.
        "extraEnv": [{"name": "PYTHONPATH", "value": PACKAGES_FOLDER}],
        "extraVolumes": [{"name": PACKAGES, "persistentVolumeClaim": {"claimName": PACKAGES, "readOnly": True}}],
        "extraVolumeMounts": [{"name": PACKAGES, "mountPath": PACKAGES_FOLDER, "readOnly": True}],
        # gRPC clients look a name up at most every 30 s: a worker that one has just found must serve longer than that.
        "drain": {"preStopSeconds": 2, "delaySeconds": 32},
    }
    return {
        **images,
        "objectStore": {"url": STORE, "existingSecret": STORE_SECRET},
        "redis": {"existingSecret": CACHE_SECRET},
        "tls": {"mode": "Disabled"},
        "tracing": {"endpoint": otlp_endpoint},
        "drain": {"delaySeconds": 2, "graceSeconds": 5},
        "networkPolicy": {
            "egress": {
                "s3": to_node(S3_PORT),
                "redis": to_node(REDIS_PORT),
                "apiServer": to_node(port_of(node.control_plane.url)),
                "otlp": to_node(port_of(otlp_endpoint)) if otlp_endpoint else [],
            }
        },
    }


def port_of(url: str) -> int:
    """The port at the end of a URL without a path."""
    return int(url.rpartition(":")[2])


def to_node(*ports: int) -> list[dict[str, Any]]:
    """Egress rules for ports of the node's own address."""
    peer = {"ipBlock": {"cidr": f"{ADDRESS}/32"}}
    return [{"to": [peer], "ports": [{"protocol": "TCP", "port": port} for port in ports]}]


def wait_rollout(node: Node, namespace: str, deployments: Sequence[str], timeout_s: int = 80) -> None:
    """Wait until Deployments are rolled out. Raises AssertionError with pods, events and last logs."""
    for name in deployments:
        try:
            node.kubectl("rollout", "status", "-n", namespace, f"deployment/{name}", f"--timeout={timeout_s}s")
        except KubectlFailed as error:
            raise AssertionError(f"{error}\n{describe(node, namespace)}") from None


def describe(node: Node, namespace: str) -> str:
    """What a person would look at first when something does not become ready."""
    shown = [node.kubectl("get", "pods,jobs,prunedmodels", "-n", namespace, "-o", "wide", check=False)]
    shown.append(node.kubectl("get", "events", "-n", namespace, "--sort-by=.lastTimestamp", check=False)[-4000:])
    pods = node.control_plane.get(f"/api/v1/namespaces/{namespace}/pods") or {"items": []}
    for pod in pods["items"]:
        name = pod["metadata"]["name"]
        logs = node.kubectl("logs", "-n", namespace, name, "--all-containers", "--tail=15", check=False)
        shown.append(f"--- {name}\n{logs}")
    models = node.kubectl("get", "prunedmodels", "-n", namespace, "-o", "json", check=False)
    if models.startswith("{"):
        shown.extend(json.dumps(model.get("status"), indent=1) for model in json.loads(models)["items"])
    return "\n".join(shown)


def _listens(port: int) -> bool:
    try:
        socket.create_connection((ADDRESS, port), timeout=1).close()
    except OSError:
        return False
    return True
