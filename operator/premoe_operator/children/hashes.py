"""Hashes that name children: of what a worker template depends on, and of what a Job computes."""

from __future__ import annotations

from typing import Any

from premoe_operator.children.inputs import Inputs
from premoe_operator.kube.objects import digest

_NOT_IN_THE_TEMPLATE: dict[str, Any] = {
    # The pack's id stands for where it came from.
    "model": {"uri", "revision", "model_id"},
    # Jobs compute these; workers learn what is resident from a ConfigMap, without a restart.
    "patterns": {"tasks", "metric", "answers", "preload"},
    "jobs": True,
    "suspend": True,
    # The template names the Secret, whoever fills it.
    "access": {"network_policy": True, "peers": True, "tls": {"issuer_ref"}},
    "workers": {
        "replicas": True,
        "service_account_annotations": True,
        "rollout": {"type", "progress_deadline_seconds"},
    },
}
"""Fields whose change must restart no worker."""


def spec_hash(inputs: Inputs) -> str:
    """Hash of all that the spec and the pack put into the worker template, and of nothing else.

    Values equal to their defaults are left out: a field that a later operator adds then changes no hash and restarts
    no worker. For the same reason a default never changes within a version of the API: stored objects hold the old one.
    """
    spec = inputs.spec.model_dump(by_alias=True, exclude=_NOT_IN_THE_TEMPLATE, exclude_defaults=True)
    return digest({"spec": spec, "modelId": inputs.packed_model_id()})


def job_hash(inputs: Inputs, kind: str, computed_from: dict[str, Any]) -> str:
    """Eight digits that name a Job: what it computes from and where to, what of the spec a failed or stuck try may be
    mended by, and the retry asked for.

    The release's image is left out, so that an upgrade runs nothing again. Parallelism can change while a Job runs.
    """
    spec = inputs.spec
    attempt = {
        "jobs": spec.jobs.model_dump(by_alias=True, exclude={"parallelism"}, exclude_defaults=True),
        "placement": spec.workers.placement.model_dump(by_alias=True, exclude={"spread"}, exclude_defaults=True),
        "serviceAccount": spec.workers.service_account_name,
        "image": spec.engine.image,
    }
    document = {"kind": kind, "store": inputs.release.store_url, "from": computed_from, "attempt": attempt}
    return digest({**document, "retry": inputs.retry})[:8]
