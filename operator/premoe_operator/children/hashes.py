"""Hashes that name children: of what a worker template depends on, and of what a Job computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from premoe_operator.children.accounts import account_name
from premoe_operator.children.inputs import Inputs
from premoe_operator.children.job_pods import job_placement, job_resources
from premoe_operator.children.pods import worker_device
from premoe_operator.kube.objects import Json, digest

_NOT_IN_THE_TEMPLATE: dict[str, Any] = {
    # The pack's id stands for where it came from.
    "model": {"uri", "revision", "model_id", "takes_over_from", "token_secret_ref"},
    # Jobs compute these; workers learn what is resident from a ConfigMap, without a restart.
    "patterns": {"tasks", "metric", "answers", "preload"},
    "engine": {"device"},
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

_EMPTY_SAYS_NOTHING: dict[str, Any] = {"patterns": {}, "access": {"tls": {}}, "workers": {"rollout": {}}}
"""Parts of which some fields, but not all, are left out."""

_STARTUP_TIMEOUT_S = 600
_MAX_TOKENS = 256
"""The defaults of before there was none, which API servers stored."""

_OF_KINDS = {"parallelism", "resources", "placement", "service_account_name", "service_account_annotations", "pack"}
"""Fields of spec.jobs that are not the same for every kind of Job, and one that can change while a Job runs."""


def spec_hash(inputs: Inputs) -> str:
    """Hash of all that the spec and the pack put into the worker template, and of nothing else.

    Values equal to their defaults are left out: a field that a later operator adds then changes no hash and restarts
    no worker. For the same reason a default never changes within a version of the API: stored objects hold the old one.
    A part in which only fields were set that are left out is empty, which says the same as no part: the hash in use
    stays where it is that of any such spelling.
    """
    model_id, spec = inputs.packed_model_id(), _template_spec(inputs)
    own, *others = (
        digest({"spec": each, "modelId": model_id}) for each in (spec, *_spellings(spec, _EMPTY_SAYS_NOTHING))
    )
    return inputs.hash_in_use if inputs.hash_in_use in others else own


def _template_spec(inputs: Inputs) -> Json:
    """What the spec puts into the worker template."""
    workers, engine_spec = inputs.spec.workers, inputs.spec.engine
    started_in, answers_end = workers.startup_timeout_seconds, engine_spec.max_tokens
    if started_in == _STARTUP_TIMEOUT_S:
        workers = workers.model_copy(update={"startup_timeout_seconds": None})
    if answers_end == _MAX_TOKENS:
        engine_spec = engine_spec.model_copy(update={"max_tokens": None})
    spec = inputs.spec.model_copy(update={"workers": workers, "engine": engine_spec}).model_dump(
        by_alias=True, exclude=_NOT_IN_THE_TEMPLATE, exclude_defaults=True
    )
    engine = spec.pop("engine", {})
    if answers_end is None:
        engine["maxTokens"] = "the context"
    if worker_device(inputs) != "cpu":  # the default of before there was auto
        engine["device"] = worker_device(inputs)
    if engine:
        spec["engine"] = engine
    if started_in is None:
        spec.setdefault("workers", {})["startupTimeoutSeconds"] = "worked out"
    return spec


def _spellings(part: Json, may_be_empty: Mapping[str, Any]) -> list[Json]:
    """The part with each of the named parts that are empty written, and left out."""
    found = [part]
    for name, below in may_be_empty.items():
        inner = _spellings(part.get(name, {}), below)
        without = [{key: value for key, value in each.items() if key != name} for each in found]
        found = [{**each, name: value} for each in without for value in inner]
        found += without if {} in inner else []
    return found


def job_inputs_hash(inputs: Inputs, kind: str, computed_from: dict[str, Any]) -> str:
    """Hash of what a Job computes from and where to, and of the retry asked for. Complete under it is complete."""
    document = {"kind": kind, "store": inputs.release.store_url, "from": computed_from, "retry": inputs.retry}
    return digest(document)


def job_attempt_hash(inputs: Inputs, kind: str) -> str:
    """Hash of what may mend a failed or stuck try of that kind of Job: another value is another try.

    The release's image is left out, so that an upgrade starts nothing anew. Parallelism can change while a Job runs.
    """
    spec = inputs.spec
    jobs = spec.jobs.model_dump(by_alias=True, exclude=_OF_KINDS, exclude_defaults=True)
    resources = job_resources(inputs, kind).model_dump(by_alias=True, exclude_defaults=True)
    account = account_name(inputs, kind)
    token = spec.model.token_secret_ref if kind == "pack" else None
    # What is at its default is left out, as above.
    secrets = {
        "token": None if token is None else token.model_dump(by_alias=True),
        "pull": [secret.name for secret in spec.image_pull_secrets],
    }
    return digest(
        {
            "jobs": {**jobs, **({"resources": resources} if resources else {})},
            "placement": job_placement(inputs, kind).model_dump(by_alias=True, exclude_defaults=True),
            "serviceAccount": "" if account == inputs.worker_name else account,
            "image": spec.engine.image,
            "expect": spec.model.model_id,
            **{name: value for name, value in secrets.items() if value},
        }
    )
