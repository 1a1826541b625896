"""The workers' Deployment, and the ControllerRevision that keeps its template.

The template is rendered once per spec hash and read back from the ControllerRevision afterwards: an operator that
renders differently, or has another default image, restarts no worker.
"""

from __future__ import annotations

from premoe_operator.api.names import LABEL_SPEC_HASH
from premoe_operator.children.hashes import spec_hash
from premoe_operator.children.inputs import Inputs, metadata, worker_selector
from premoe_operator.children.worker_pods import PROBE_PERIOD_S, startup_of
from premoe_operator.kube.objects import Json

_ROLLING: dict[str, Json] = {
    "Surge": {"maxSurge": 1, "maxUnavailable": 0},
    "InPlace": {"maxSurge": 0, "maxUnavailable": 1},
    # Not the strategy type Recreate: apply refuses to switch types (kubernetes/kubernetes#24198).
    "Recreate": {"maxSurge": 0, "maxUnavailable": "100%"},
}


def worker_deployment(inputs: Inputs, template: Json) -> Json:
    """The Deployment with that template; no replicas while suspended, or when another PrunedModel serves the name."""
    spec = inputs.spec
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(inputs, inputs.worker_name, "worker"),
        "spec": {
            "replicas": 0 if spec.suspend or inputs.is_handed_over else spec.workers.replicas,
            "selector": {"matchLabels": worker_selector(inputs.owner.name)},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": dict(_ROLLING[spec.workers.rollout.type])},
            "progressDeadlineSeconds": _progress_deadline_s(inputs, template),
            "revisionHistoryLimit": 2,
            "template": template,
        },
    }


def _progress_deadline_s(inputs: Inputs, template: Json) -> int:
    """That of the spec, which is refused where it is less than a start-up that the spec names; a start-up that is
    worked out raises it.
    """
    workers = inputs.spec.workers
    deadline = workers.rollout.progress_deadline_seconds
    if workers.startup_timeout_seconds is not None:
        return deadline
    return max(deadline, startup_of(template) + workers.drain_timeout_seconds + PROBE_PERIOD_S)


def template_revision_name(inputs: Inputs) -> str:
    """Name of the ControllerRevision that keeps the template of the present spec."""
    return f"{inputs.owner.name}-{spec_hash(inputs)[:8]}"


def template_revision(inputs: Inputs, template: Json) -> Json:
    """The ControllerRevision that keeps the template."""
    found = metadata(inputs, template_revision_name(inputs), "worker", {LABEL_SPEC_HASH: spec_hash(inputs)})
    return {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": found,
        "revision": inputs.owner.generation,
        "data": template,
    }
