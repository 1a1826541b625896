"""The Jobs as whole values, and how they are named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from crd import schema
from premoe_operator import children
from premoe_operator.api.names import ANNOTATION_SUSPENDED
from premoe_operator.api.resources import UsualMetric
from premoe_operator.kube.objects import Json
from premoe_worker.jobs.cli import command
from support.pruned_models import COMMIT, FULL, IMAGE, MODEL_ID, SMALLEST, Document, changed, inputs_of

from premoe_runtime.formats.errors import PremoeError
from premoe_runtime.offline.profile.scores import SCORES, USUAL, measured_for

METRICS: list[str] = schema()["properties"]["spec"]["properties"]["patterns"]["properties"]["metric"]["enum"]
SCRATCH = [{"name": name, "emptyDir": {"sizeLimit": "2Gi"}} for name in ("tmp", "home", "cache")]


def container_of(job: Json) -> Json:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def job_of(build: str, spec: Document, **changes: Any) -> Json:
    job = getattr(children, build)(inputs_of(spec, **changes))
    assert isinstance(job, dict)
    return job


def test_the_pack_job_of_the_smallest_spec() -> None:
    job = job_of("pack_job", SMALLEST, model_id="")
    name = job["metadata"]["name"]
    container = container_of(job)
    inputs_hash = job["metadata"]["labels"]["premoe.dev/inputs-hash"]
    assert re.fullmatch(rf"mixtral-pack-{inputs_hash[:5]}-[0-9a-f]{{4}}", name)
    assert job["metadata"]["labels"]["app.kubernetes.io/component"] == "pack"
    assert job["spec"]["template"]["metadata"]["labels"] == job["metadata"]["labels"]
    assert container["image"] == IMAGE
    assert (container["command"], container["args"]) == (
        ["premoe-job"],
        ["pack", "s3://models/tiny", "--to", "s3://premoe/store"],
    )
    assert container["envFrom"] == [{"secretRef": {"name": "premoe-s3"}}]
    pod = job["spec"]["template"]["spec"]
    assert (pod["restartPolicy"], pod["serviceAccountName"], pod["volumes"]) == ("Never", "mixtral-worker", SCRATCH)
    assert {key: value for key, value in job["spec"].items() if key != "template"} == {
        "suspend": False,
        "backoffLimit": 3,
        "activeDeadlineSeconds": 86_400,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {
            "rules": [
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": "premoe-job", "operator": "In", "values": [2, 3, 4, 5]},
                },
            ]
        },
    }


def test_exit_codes_that_end_a_job_are_those_of_errors_which_repeat() -> None:
    codes = {kind.__name__: kind.exit_code for kind in PremoeError.__subclasses__()}
    (_, rule) = job_of("pack_job", SMALLEST)["spec"]["podFailurePolicy"]["rules"]
    ending = {name for name, code in codes.items() if code in rule["onExitCodes"]["values"]}
    assert ending == {"InvalidInput", "NotFound", "Conflict", "CorruptData"}


@pytest.mark.parametrize(
    ("changes", "source", "options"),
    [
        ({"model": {"uri": "hf://org/name", "revision": COMMIT}}, "hf://org/name", ["--revision", COMMIT]),
        ({"model.modelId": MODEL_ID}, "s3://models/tiny", ["--expect", MODEL_ID]),
        ({"model.uri": "pvc://claim/some/folder"}, "/source/some/folder", []),
    ],
)
def test_what_the_pack_job_is_told(changes: Document, source: str, options: list[str]) -> None:
    args = container_of(job_of("pack_job", changed(SMALLEST, changes)))["args"]
    assert args == ["pack", source, "--to", "s3://premoe/store", *options]


def test_a_claim_is_mounted_read_only() -> None:
    job = job_of("pack_job", changed(SMALLEST, {"model.uri": "pvc://claim/some/folder"}))
    claim = {"claimName": "claim", "readOnly": True}
    assert job["spec"]["template"]["spec"]["volumes"][3:] == [{"name": "source", "persistentVolumeClaim": claim}]
    assert container_of(job)["volumeMounts"][3:] == [{"name": "source", "mountPath": "/source", "readOnly": True}]


def test_the_profile_job_has_an_index_for_every_task() -> None:
    job = job_of("profile_job", FULL)
    assert (job["spec"]["completionMode"], job["spec"]["completions"], job["spec"]["parallelism"]) == ("Indexed", 2, 2)
    assert container_of(job)["args"] == [
        *("profile", "s3://premoe/store", "--model-id", MODEL_ID, "--tasks", "/etc/premoe/tasks/tasks.json"),
        *("--answers", "none", "--device", "cuda"),
    ]
    source = {"name": "prompts", "items": [{"key": "maths.jsonl", "path": "maths/data.jsonl"}]}
    assert job["spec"]["template"]["spec"]["volumes"][3:] == [
        {"name": "tasks", "configMap": {"name": "mixtral-tasks"}},
        {"name": "calibration", "projected": {"sources": [{"configMap": source}]}},
    ]
    assert container_of(job)["volumeMounts"][3:] == [
        {"name": "tasks", "mountPath": "/etc/premoe/tasks", "readOnly": True},
        {"name": "calibration", "mountPath": "/etc/premoe/calibration", "readOnly": True},
    ]
    assert job["metadata"]["labels"]["queue.test/name"] == "batch"


@pytest.mark.parametrize(
    ("resources", "options"),
    [({}, []), ({"limits": {"amd.com/gpu": "1"}}, ["--device", "cuda"]), ({"limits": {"cpu": "1"}}, [])],
)
def test_a_profile_runs_on_what_its_own_pod_gets(resources: Json, options: list[str]) -> None:
    """Whatever the workers' device is."""
    args = container_of(job_of("profile_job", changed(FULL, {"jobs.resources": resources})))["args"]
    assert args[args.index("--answers") + 2 :] == options


def test_the_patterns_job_builds_at_both_budgets() -> None:
    assert container_of(job_of("patterns_job", FULL))["args"] == [
        *("patterns", "s3://premoe/store", "--model-id", MODEL_ID, "--tasks", "/etc/premoe/tasks/tasks.json"),
        *("--answers", "none", "--metric", "seer", "--budget", "2/4", "--budget", "2/6", "--on-unknown", "reject"),
    ]
    same = container_of(job_of("patterns_job", changed(FULL, {"patterns.generalistBudget": "2/4"})))["args"]
    assert same.count("--budget") == 1


def test_a_score_that_not_every_profile_has_is_measured_by_jobs_of_its_own() -> None:
    jobs = {metric: job_of("profile_job", changed(FULL, {"patterns.metric": metric})) for metric in METRICS}
    inputs = {metric: job["metadata"]["labels"]["premoe.dev/inputs-hash"] for metric, job in jobs.items()}
    usual = {inputs[metric] for metric in METRICS if measured_for(metric.lower()) == USUAL}
    assert len(set(inputs.values())) == len(METRICS) - len(get_args(UsualMetric)) + len(usual)
    for metric, job in jobs.items():
        args, own = container_of(job)["args"], metric not in get_args(UsualMetric)
        assert ("--metric" in args) == own == (measured_for(metric.lower()) != USUAL), metric
        assert not own or args[args.index("--metric") + 1] == metric.lower()


def test_every_score_has_a_name_in_the_definition() -> None:
    assert {metric.lower() for metric in METRICS} == set(SCORES)


def test_data_in_object_storage_needs_no_volume() -> None:
    job = job_of("profile_job", changed(FULL, {"patterns.tasks": [FULL["patterns"]["tasks"][1]]}))
    assert [volume["name"] for volume in job["spec"]["template"]["spec"]["volumes"]] == [
        "tmp",
        "home",
        "cache",
        "tasks",
    ]


def test_without_tasks_there_is_only_the_pack_job() -> None:
    inputs = inputs_of(SMALLEST)
    assert children.profile_job(inputs) is None
    assert children.patterns_job(inputs) is None
    assert children.tasks_config(inputs) is None


def test_a_release_without_a_store_secret_gives_none() -> None:
    assert "envFrom" not in container_of(job_of("pack_job", SMALLEST, release={"storeSecretName": ""}))


@pytest.mark.parametrize("build", ["pack_job", "profile_job", "patterns_job"])
def test_an_upgrade_names_no_job_anew_and_a_retry_does(build: str) -> None:
    name = job_of(build, FULL)["metadata"]["name"]
    upgraded = job_of(build, FULL, release={"workerImage": "next:2", "imagePullPolicy": "Always"})
    assert upgraded["metadata"]["name"] == name
    assert job_of(build, FULL, retry="2026-01-01")["metadata"]["name"] != name
    assert job_of(build, FULL, release={"storeUrl": "s3://other"})["metadata"]["name"] != name


@pytest.mark.parametrize("build", ["pack_job", "profile_job", "patterns_job"])
@pytest.mark.parametrize("spec", [FULL, changed(FULL, {"model": {"uri": "hf://org/name", "revision": COMMIT}})])
def test_the_command_takes_its_arguments(build: str, spec: Document, tmp_path: Path) -> None:
    (tmp_path / "tasks.json").touch()
    name, *args = container_of(job_of(build, spec))["args"]
    given = [arg.replace("/etc/premoe/tasks", str(tmp_path)) for arg in args]
    context = command.commands[name].make_context(name, given)
    assert context.params["store_url"] == "s3://premoe/store"


MARKED = {ANNOTATION_SUSPENDED: "true"}
MARK = {"metadata": {"annotations": MARKED}}
UNMARK = {"metadata": {"annotations": {ANNOTATION_SUSPENDED: None}}}


@pytest.mark.parametrize(
    ("annotations", "suspended", "changes", "patch"),
    [
        ({}, False, {}, None),
        ({}, False, {"jobs.parallelism": 1}, {"spec": {"parallelism": 1}}),
        ({}, False, {"jobs.parallelism": 64}, None),
        ({}, False, {"suspend": True}, {**MARK, "spec": {"suspend": True}}),
        (MARKED, True, {"suspend": True}, None),
        (MARKED, True, {}, {**UNMARK, "spec": {"suspend": False}}),
        # A queue holds the Job back: that is not ours to undo, but ours to mark once we want the same.
        ({}, True, {}, None),
        ({}, True, {"suspend": True}, MARK),
    ],
)
def test_only_suspend_and_parallelism_of_a_job_change(
    annotations: Json, suspended: bool, changes: Document, patch: Json | None
) -> None:
    job = job_of("profile_job", FULL)
    job["spec"]["suspend"], job["metadata"]["annotations"] = suspended, annotations
    assert children.job_changes(inputs_of(changed(FULL, changes)), job) == patch


def test_a_job_made_while_suspended_is_marked() -> None:
    job = job_of("pack_job", changed(FULL, {"suspend": True}))
    assert (job["spec"]["suspend"], job["metadata"]["annotations"]) == (True, MARKED)
    assert "annotations" not in job_of("pack_job", FULL)["metadata"]


def test_parallelism_of_a_job_that_is_not_indexed_is_left_alone() -> None:
    job = job_of("pack_job", FULL)
    assert children.job_changes(inputs_of(changed(FULL, {"jobs.parallelism": 7})), job) is None
