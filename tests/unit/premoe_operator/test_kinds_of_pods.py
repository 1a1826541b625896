"""What pack Jobs, the other Jobs and workers get apart: devices, places, accounts, Secrets; and a worker's start."""

from __future__ import annotations

from typing import Any

import pytest
from premoe_operator import children
from premoe_operator.kube.objects import Json
from support.pruned_models import COMMIT, FULL, PLACEMENT, SMALLEST, Document, changed, inputs_of

TASKS = [{"name": "code", "calibration": {"uri": "s3://data/code.jsonl"}}]
PLAIN = changed(SMALLEST, {"patterns.tasks": TASKS})
GPU = {"limits": {"memory": "8Gi", "nvidia.com/gpu": "1"}, "requests": {"nvidia.com/gpu": "1"}}
COMPONENTS = ("pack", "profile", "patterns", "worker")


def pods(spec: Document, **given: Any) -> dict[str, Json]:
    """The pod of each component."""
    inputs = inputs_of(spec, **given)
    jobs = (children.pack_job(inputs), children.profile_job(inputs), children.patterns_job(inputs))
    templates = [*(job["spec"]["template"] for job in jobs if job is not None), children.worker_template(inputs)]
    return dict(zip(COMPONENTS, (template["spec"] for template in templates), strict=True))


def each(found: dict[str, Json], field: str) -> dict[str, Any]:
    return {component: pod.get(field) for component, pod in found.items()}


def container(pod: Json) -> Json:
    (only,) = pod["containers"]
    assert isinstance(only, dict)
    return only


def accounts(spec: Document) -> dict[str, Any]:
    """Annotations of the accounts that are created."""
    found = [child for child in children.surroundings(inputs_of(spec)) if child["kind"] == "ServiceAccount"]
    assert all(account["automountServiceAccountToken"] is False for account in found)
    return {account["metadata"]["name"]: account["metadata"]["annotations"] for account in found}


def test_only_profiling_gets_the_devices_of_jobs() -> None:
    claims = [{"name": "gpu", "template": "gpu"}]
    found = pods(changed(PLAIN, {"jobs.resources": {**GPU, "claims": claims}}))
    assert container(found["profile"])["resources"] == {**GPU, "claims": [{"name": "gpu"}]}
    for component in ("pack", "patterns"):
        assert container(found[component])["resources"] == {"limits": {"memory": "8Gi"}}
        assert "resourceClaims" not in found[component]


def test_no_job_gets_the_devices_of_workers() -> None:
    found = pods(changed(PLAIN, {"workers.resources": GPU}))
    assert [container(pod)["resources"] for pod in found.values()] == [{}, {}, {}, GPU]


def test_packing_has_its_own_amounts() -> None:
    own = {"requests": {"memory": "64Gi"}, "limits": {"memory": "64Gi", "cpu": "7"}}
    found = pods(changed(PLAIN, {"jobs.resources": GPU, "jobs.pack.resources": own}))
    assert container(found["pack"])["resources"] == own
    assert {"name": "OMP_NUM_THREADS", "value": "7"} in container(found["pack"])["env"]
    assert container(found["patterns"])["resources"] == {"limits": {"memory": "8Gi"}}


def test_jobs_run_where_workers_do_unless_the_spec_says_otherwise() -> None:
    """As before there was a choice; what spreads workers, or keeps them apart, is no matter of Jobs."""
    workers = FULL["workers"]["placement"]
    same = pods(changed(PLAIN, {"workers.placement": workers}))
    assert list(each(same, "nodeSelector").values()) == [{"pool": "gpu"}] * 4
    assert each(same, "priorityClassName") == dict.fromkeys(COMPONENTS, "serving")
    nodes = {"nodeAffinity": workers["affinity"]["nodeAffinity"]}
    assert each(same, "affinity") == {**dict.fromkeys(COMPONENTS, nodes), "worker": workers["affinity"]}
    assert [component for component in COMPONENTS if "topologySpreadConstraints" in same[component]] == ["worker"]


@pytest.mark.parametrize(
    ("changes", "apart"),
    [
        ({"jobs.placement": PLACEMENT}, ("pack", "profile", "patterns")),
        ({"jobs.pack.placement": PLACEMENT}, ("pack",)),
        ({"jobs.placement": {}}, ()),
    ],
)
def test_a_placement_of_jobs_replaces_that_of_workers_as_a_whole(changes: Document, apart: tuple[str, ...]) -> None:
    found = pods(changed(PLAIN, {"workers.placement": FULL["workers"]["placement"], **changes}))
    assert [name for name, pod in found.items() if pod.get("runtimeClassName") == "plain"] == list(apart)
    for component in apart:
        assert found[component]["affinity"] == PLACEMENT["affinity"]
        assert found[component]["tolerations"] == PLACEMENT["tolerations"]
    if "jobs.placement" in changes and not apart:
        assert "nodeSelector" not in found["pack"]
    assert found["worker"]["nodeSelector"] == {"pool": "gpu"}


@pytest.mark.parametrize(
    ("changes", "used", "created"),
    [
        ({}, ("mixtral-worker",) * 4, {"mixtral-worker": {}}),
        ({"workers.serviceAccountName": "own"}, ("own",) * 4, {}),
        ({"workers.serviceAccountAnnotations": {"a": "r"}}, ("mixtral-worker",) * 4, {"mixtral-worker": {"a": "r"}}),
        (
            {"jobs.serviceAccountAnnotations": {"a": "w"}},
            ("mixtral-jobs", "mixtral-jobs", "mixtral-jobs", "mixtral-worker"),
            {"mixtral-worker": {}, "mixtral-jobs": {"a": "w"}},
        ),
        (
            {"jobs.serviceAccountName": "writer", "workers.serviceAccountName": "reader"},
            ("writer", "writer", "writer", "reader"),
            {},
        ),
        (
            {"jobs.serviceAccountName": "writer", "jobs.pack.serviceAccountAnnotations": {"a": "p"}},
            ("mixtral-pack", "writer", "writer", "mixtral-worker"),
            {"mixtral-worker": {}, "mixtral-pack": {"a": "p"}},
        ),
        (
            {"jobs.pack.serviceAccountName": "packer"},
            ("packer", "mixtral-worker", "mixtral-worker", "mixtral-worker"),
            {"mixtral-worker": {}},
        ),
    ],
)
def test_accounts_are_apart_where_the_spec_sets_them_apart(
    changes: Document, used: tuple[str, ...], created: dict[str, Any]
) -> None:
    spec = changed(PLAIN, changes)
    assert tuple(each(pods(spec), "serviceAccountName").values()) == used
    assert accounts(spec) == created


def test_secrets_of_the_spec_go_to_the_pods_that_need_them() -> None:
    spec = changed(
        PLAIN,
        {
            "model": {"uri": "hf://org/name", "revision": COMMIT, "tokenSecretRef": {"name": "hub"}},
            "jobs.storeSecretRef": {"name": "own-s3"},
            "imagePullSecrets": [{"name": "pull"}, {"name": "release-pull"}],
        },
    )
    found = pods(spec, release={"imagePullSecrets": ["release-pull"], "extraEnv": [{"name": "HF_TOKEN", "value": "x"}]})
    both = [{"name": "release-pull"}, {"name": "pull"}]
    assert each(found, "imagePullSecrets") == dict.fromkeys(COMPONENTS, both)
    stores = {component: container(pod).get("envFrom") for component, pod in found.items()}
    assert list(stores.values()) == [*[[{"secretRef": {"name": "own-s3"}}]] * 3, None]
    tokens = [env for env in container(found["pack"])["env"] if env["name"] == "HF_TOKEN"]
    assert tokens == [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}]
    for component in ("profile", "patterns", "worker"):
        assert not any("valueFrom" in env for env in container(found[component])["env"] if env["name"] == "HF_TOKEN")


@pytest.mark.parametrize(
    ("load_bytes", "changes", "startup_s", "deadline_s"),
    [
        (0, {}, 600, 1800),
        (14 << 20, {}, 605, 1800),
        (94 << 30, {}, 600 + 94 * 16, 600 + 94 * 16 + 1 + 60 + 5),
        (94 << 30, {"workers.rollout.progressDeadlineSeconds": 7200}, 600 + 94 * 16, 7200),
        (94 << 30, {"workers.startupTimeoutSeconds": 1200}, 1200, 1800),
        (1 << 50, {"workers.drainTimeoutSeconds": 1}, 86_400, 86_406),
    ],
)
def test_the_time_to_start_is_worked_out_from_what_a_worker_loads(
    load_bytes: int, changes: Document, startup_s: int, deadline_s: int
) -> None:
    inputs = inputs_of(changed(SMALLEST, changes), load_bytes=load_bytes)
    template = children.worker_template(inputs)
    assert children.startup_of(template) - startup_s in range(5)
    deployment = children.worker_deployment(inputs, template)
    assert deployment["spec"]["progressDeadlineSeconds"] - deadline_s in range(-1, 5)


def test_a_time_that_was_stored_as_the_default_restarts_nothing() -> None:
    """Before it was worked out the API server stored 600."""
    stored, named, worked_out = (
        inputs_of(changed(SMALLEST, {"workers.startupTimeoutSeconds": seconds})) for seconds in (600, 601, None)
    )
    assert len({children.spec_hash(inputs) for inputs in (stored, named, worked_out)}) == 3


def test_what_is_apart_names_only_its_own_job_anew() -> None:
    """A pack that runs is not started again because profiling gets another GPU."""

    def names(spec: Document) -> dict[str, str]:
        inputs = inputs_of(spec)
        jobs = {"pack": children.pack_job(inputs), "profile": children.profile_job(inputs)}
        return {kind: job["metadata"]["name"] for kind, job in jobs.items() if job is not None}

    before = names(PLAIN)
    packed = names(changed(PLAIN, {"jobs.pack.placement": PLACEMENT}))
    assert (packed["pack"] != before["pack"], packed["profile"]) == (True, before["profile"])
    profiled = names(changed(PLAIN, {"jobs.resources.limits": {"nvidia.com/gpu": "1"}}))
    assert (profiled["profile"] != before["profile"], profiled["pack"]) == (True, before["pack"])
