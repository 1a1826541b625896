"""The ServiceAccount of workers and Jobs."""

from __future__ import annotations

from premoe_operator.children.inputs import Inputs, Obj, metadata


def service_account(inputs: Inputs) -> Obj | None:
    """An account without rights, for workload identity; None where the spec names one."""
    if inputs.spec.workers.service_account_name:
        return None
    annotations = dict(inputs.spec.workers.service_account_annotations)
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {**metadata(inputs, inputs.worker_name, "worker"), "annotations": annotations},
        "automountServiceAccountToken": False,
    }
