"""The PodDisruptionBudget of the workers."""

from __future__ import annotations

from premoe_operator.children.inputs import Inputs, Obj, metadata, worker_selector


def disruption_budget(inputs: Inputs) -> Obj:
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
