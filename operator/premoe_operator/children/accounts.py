"""ServiceAccounts: one for the workers, and apart for Jobs, or for packing alone, where the spec sets them apart.

Workers need no right to write the store. A Job without an account of its own has the next wider one.
"""

from __future__ import annotations

from premoe_operator.api.workloads import Jobs, Pack, Workers
from premoe_operator.children.inputs import Inputs, metadata
from premoe_operator.kube.objects import Json


def account_name(inputs: Inputs, component: str) -> str:
    """Name of the account that pods of a component have."""
    spec, name = inputs.spec, inputs.owner.name
    apart: dict[str, Jobs | Pack] = {}
    if component == "pack":
        apart[f"{name}-pack"] = spec.jobs.pack
    if component != "worker":
        apart[f"{name}-jobs"] = spec.jobs
    for created, part in apart.items():
        if part.service_account_name or part.service_account_annotations:
            return part.service_account_name or created
    return spec.workers.service_account_name or inputs.worker_name


def service_accounts(inputs: Inputs) -> tuple[Json, ...]:
    """Accounts without rights in the cluster, for workload identity; none in place of one that the spec names."""
    spec, name = inputs.spec, inputs.owner.name
    created: list[tuple[str, str, Workers | Jobs | Pack]] = []
    if not spec.workers.service_account_name:
        created.append((inputs.worker_name, "worker", spec.workers))
    apart = ((f"{name}-jobs", "profile", spec.jobs), (f"{name}-pack", "pack", spec.jobs.pack))
    created += [each for each in apart if each[2].service_account_annotations]
    return tuple(
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {
                **metadata(inputs, account, component),
                "annotations": dict(part.service_account_annotations),
            },
            "automountServiceAccountToken": False,
        }
        for account, component, part in created
    )
