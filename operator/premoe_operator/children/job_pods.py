"""What the pods of each kind of Job get and where they run, where it is not what the spec says for all of them."""

from __future__ import annotations

import re

from premoe_operator.api.placement import Affinity, Placement
from premoe_operator.api.workloads import GPU_NAME, Resources
from premoe_operator.children.inputs import Inputs


def job_resources(inputs: Inputs, component: str) -> Resources:
    """Only profiling runs the model: GPUs and claimed devices are for it alone."""
    jobs = inputs.spec.jobs
    if component == "profile":
        return jobs.resources
    if component == "pack" and jobs.pack.resources is not None:
        return jobs.pack.resources
    return Resources(requests=_without_gpus(jobs.resources.requests), limits=_without_gpus(jobs.resources.limits))


def job_placement(inputs: Inputs, component: str) -> Placement:
    """Where a Job runs. What only spreads the workers, or keeps them apart, does not bind it."""
    jobs, workers = inputs.spec.jobs, inputs.spec.workers.placement
    named = (jobs.pack.placement if component == "pack" else None) or jobs.placement
    if named is not None:
        return named
    nodes = None if workers.affinity is None else workers.affinity.node_affinity
    kept = {name: getattr(workers, name) for name in Placement.model_fields if name != "affinity"}
    return Placement(**kept, affinity=None if nodes is None else Affinity(node_affinity=nodes))


def _without_gpus(amounts: dict[str, str]) -> dict[str, str]:
    return {name: count for name, count in amounts.items() if not re.match(GPU_NAME, name)}
