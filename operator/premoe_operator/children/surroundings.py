"""Every child that stands around the workers and Jobs."""

from __future__ import annotations

import json

from premoe_operator.api.resources import Task
from premoe_operator.children.accounts import service_accounts
from premoe_operator.children.inputs import ADMIN_PORT, GRPC_PORT, Inputs, metadata, worker_selector
from premoe_operator.children.network_policy import jobs_network_policy, network_policy
from premoe_operator.children.transport import certificate
from premoe_operator.kube.objects import Json

CALIBRATION_FOLDER = "/etc/premoe/calibration"


def surroundings(inputs: Inputs) -> tuple[Json, ...]:
    """All children but Jobs, ControllerRevisions and the Deployment, in the order in which to create them.

    Policies come first: no pod may run without its own.
    """
    wanted = (
        network_policy(inputs),
        jobs_network_policy(inputs),
        *service_accounts(inputs),
        certificate(inputs),
        residency_config(inputs),
        tasks_config(inputs),
        worker_service(inputs),
        disruption_budget(inputs),
    )
    return tuple(child for child in wanted if child is not None)


def residency_config(inputs: Inputs) -> Json:
    """What workers bring in unasked; they watch the file, so that a change restarts nothing."""
    return _config(inputs, "residency", {"preload": list(inputs.spec.patterns.preload)}, "worker")


def tasks_config(inputs: Inputs) -> Json | None:
    """The tasks in the order of the profile Job's indexes; None without tasks."""
    tasks = [_document(task) for task in inputs.spec.patterns.tasks]
    return _config(inputs, "tasks", tasks, "profile") if tasks else None


def tasks_config_name(inputs: Inputs) -> str:
    return f"{inputs.owner.name}-tasks"


def worker_service(inputs: Inputs) -> Json:
    """A headless Service: gRPC clients see every ready worker and choose among them."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(inputs, inputs.worker_name, "worker"),
        "spec": {
            "clusterIP": "None",
            "selector": worker_selector(inputs.owner.name),
            "ports": [
                {"name": "grpc", "port": GRPC_PORT, "targetPort": "grpc", "protocol": "TCP", "appProtocol": "grpc"},
                {"name": "admin", "port": ADMIN_PORT, "targetPort": "admin", "protocol": "TCP", "appProtocol": "grpc"},
            ],
        },
    }


def disruption_budget(inputs: Inputs) -> Json:
    """Node drains take one worker at a time, and one that never became ready does not hold them up."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(inputs, inputs.worker_name, "worker"),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": worker_selector(inputs.owner.name)},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


def _document(task: Task) -> Json:
    data = task.calibration.uri or f"{CALIBRATION_FOLDER}/{task.name}/data.jsonl"
    return {"name": task.name, "data": data, **({} if task.samples is None else {"samples": task.samples})}


def _config(inputs: Inputs, what: str, document: object, component: str) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(inputs, f"{inputs.owner.name}-{what}", component),
        "data": {f"{what}.json": json.dumps(document)},
    }
