"""The Jobs that pack, profile and build patterns. Each ensures its artefact: where that exists it ends at once.

A Job is named after what it computes from and after the try, so another input is another Job, and the template of a
Job, which Kubernetes does not let change, never has to. Which of several tries counts, ``decide`` says.
"""

from __future__ import annotations

from typing import Any, get_args

from premoe_operator.api.names import ANNOTATION_SUSPENDED, LABEL_JOB_INPUTS
from premoe_operator.api.resources import UsualMetric
from premoe_operator.children.accounts import account_name
from premoe_operator.children.hashes import job_attempt_hash, job_inputs_hash
from premoe_operator.children.inputs import Inputs, job_image, labels, metadata
from premoe_operator.children.job_pods import job_placement, job_resources
from premoe_operator.children.pods import PodShape, device_of, pod_spec, thread_count, tracing_env
from premoe_operator.children.surroundings import CALIBRATION_FOLDER, tasks_config_name
from premoe_operator.kube.objects import Json

JOB_CONTAINER = "premoe-job"
TASKS_FOLDER = "/etc/premoe/tasks"
SOURCE_FOLDER = "/source"

BAD_INPUT_EXITS = (2, 3, 4, 5)
"""Exit codes of errors that another try repeats (``premoe_runtime.formats.errors``)."""


def pack_job(inputs: Inputs) -> Json:
    """Pack the checkpoint into the store."""
    model, store = inputs.spec.model, inputs.release.store_url
    options = [("--to", store), ("--revision", model.revision), ("--expect", inputs.expected_id)]
    volumes: list[Json] = []
    mounts: list[Json] = []
    source = model.uri
    if source.startswith("pvc://"):
        claim, _, folder = source.removeprefix("pvc://").partition("/")
        source = f"{SOURCE_FOLDER}/{folder}"
        volumes = [{"name": "source", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}]
        mounts = [{"name": "source", "mountPath": SOURCE_FOLDER, "readOnly": True}]
    computed_from = {"uri": model.uri, "revision": model.revision}
    args = ["pack", source, *_flags(options)]
    return _job(inputs, "pack", args, computed_from, volumes, mounts)


def profile_job(inputs: Inputs) -> Json | None:
    """Profile every task, one index each; None without tasks."""
    spec = inputs.spec
    if not spec.patterns.tasks:
        return None
    options = [("--answers", spec.patterns.answers.lower()), ("--metric", _own_metric(inputs))]
    device = device_of(spec.jobs.resources)
    if device != "cpu":
        options.append(("--device", device))
    # Profiles of before there was impact do for the other metrics.
    weighed = {"impact": True} if spec.patterns.metric in ("Impact", "Norm", "REAP") else {}
    computed_from = {**_profiled_from(inputs), **weighed}
    args = _on_tasks(inputs, "profile", options)
    job = _job(inputs, "profile", args, computed_from, *_task_files(inputs))
    tasks = len(spec.patterns.tasks)
    indexed = {"completionMode": "Indexed", "completions": tasks, "parallelism": _parallelism(inputs)}
    return {**job, "spec": {**job["spec"], **indexed}}


def patterns_job(inputs: Inputs) -> Json | None:
    """Build the set of exactly those tasks and make it the live one; None without tasks."""
    patterns = inputs.spec.patterns
    if not patterns.tasks:
        return None
    budgets = dict.fromkeys((inputs.spec.budget, patterns.generalist_budget or inputs.spec.budget))
    options = [
        ("--answers", patterns.answers.lower()),
        ("--metric", patterns.metric.lower()),
        *(("--budget", budget) for budget in budgets),
        ("--on-unknown", patterns.on_unknown.lower()),
    ]
    computed_from = {**_profiled_from(inputs), "options": options}
    return _job(inputs, "patterns", _on_tasks(inputs, "patterns", options), computed_from, *_task_files(inputs))


def job_changes(inputs: Inputs, job: Json) -> Json | None:
    """Merge patch for a Job that exists: the only fields that may change; None: nothing to change.

    A queue such as Kueue suspends Jobs too. So what we suspended is marked, and only that is resumed.
    """
    spec, metadata = job["spec"], job["metadata"]
    marked = ANNOTATION_SUSPENDED in (metadata.get("annotations") or {})
    patch: Json = {}
    if inputs.spec.suspend != marked:
        mark = "true" if inputs.spec.suspend else None
        patch["metadata"] = {"annotations": {ANNOTATION_SUSPENDED: mark}}
    wanted: Json = {"suspend": inputs.spec.suspend} if inputs.spec.suspend or marked else {}
    if spec.get("completionMode") == "Indexed":
        wanted["parallelism"] = min(inputs.spec.jobs.parallelism, spec["completions"])
    changed = {name: value for name, value in wanted.items() if spec.get(name) != value}
    if changed:
        patch["spec"] = changed
    return patch or None


def _job(
    inputs: Inputs,
    kind: str,
    args: list[str],
    computed_from: dict[str, Any],
    volumes: list[Json],
    mounts: list[Json],
) -> Json:
    jobs = inputs.spec.jobs
    from_inputs, this_try = job_inputs_hash(inputs, kind, computed_from), job_attempt_hash(inputs, kind)
    extra = {**jobs.labels, LABEL_JOB_INPUTS: from_inputs}
    # As many digits as the longest name of a PrunedModel and of an index leave room for; the label has them all.
    found = metadata(inputs, f"{inputs.owner.name}-{kind}-{from_inputs[:5]}-{this_try[:4]}", kind, extra)
    if inputs.spec.suspend:
        found["annotations"] = {ANNOTATION_SUSPENDED: "true"}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": found,
        "spec": {
            "suspend": inputs.spec.suspend,
            "backoffLimit": jobs.retries,
            "activeDeadlineSeconds": jobs.timeout_seconds,
            # A pod that still ends must not run beside its replacement.
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": _failure_rules()},
            "template": {
                "metadata": {"labels": labels(inputs, kind, extra)},
                "spec": {**pod_spec(inputs, _shape(inputs, kind, args, volumes, mounts)), "restartPolicy": "Never"},
            },
        },
    }


def _shape(inputs: Inputs, kind: str, args: list[str], volumes: list[Json], mounts: list[Json]) -> PodShape:
    jobs, resources = inputs.spec.jobs, job_resources(inputs, kind)
    secret = inputs.release.store_secret_name if jobs.store_secret_ref is None else jobs.store_secret_ref.name
    container = {"name": JOB_CONTAINER, "image": job_image(inputs), "command": ["premoe-job"], "args": args}
    return PodShape(
        container=container,
        env=tracing_env(inputs, f"premoe-{kind}"),
        env_of_spec=_hub_token(inputs, kind),
        volumes=volumes,
        mounts=mounts,
        resources=resources,
        placement=job_placement(inputs, kind),
        account=account_name(inputs, kind),
        threads=thread_count(resources),
        scratch_size=jobs.scratch_size,
        env_from=({"secretRef": {"name": secret}},) if secret else (),
    )


def _hub_token(inputs: Inputs, kind: str) -> tuple[Json, ...]:
    secret = inputs.spec.model.token_secret_ref
    if secret is None or kind != "pack":
        return ()
    return ({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": secret.name, "key": secret.key}}},)


def _failure_rules() -> list[Json]:
    """The first rule that fits decides: a lost node is no failure, bad input ends the Job."""
    exits = {"containerName": JOB_CONTAINER, "operator": "In", "values": list(BAD_INPUT_EXITS)}
    return [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailJob", "onExitCodes": exits},
    ]


def _on_tasks(inputs: Inputs, command: str, options: list[tuple[str, str]]) -> list[str]:
    common = [("--model-id", inputs.packed_model_id()), ("--tasks", f"{TASKS_FOLDER}/tasks.json")]
    return [command, inputs.release.store_url, *_flags([*common, *options])]


def _profiled_from(inputs: Inputs) -> dict[str, Any]:
    patterns = inputs.spec.patterns
    tasks = [task.model_dump(by_alias=True, exclude_defaults=True) for task in patterns.tasks]
    own = {"metric": _own_metric(inputs)} if _own_metric(inputs) else {}
    return {"modelId": inputs.packed_model_id(), "tasks": tasks, "answers": patterns.answers, **own}


def _own_metric(inputs: Inputs) -> str:
    """The score that profiles have to be measured for; empty where every profile has it."""
    metric = inputs.spec.patterns.metric
    return "" if metric in get_args(UsualMetric) else metric.lower()


def _task_files(inputs: Inputs) -> tuple[list[Json], list[Json]]:
    """Volumes and mounts of the list of tasks and of the calibration data that ConfigMaps hold."""
    volumes: list[Json] = [{"name": "tasks", "configMap": {"name": tasks_config_name(inputs)}}]
    mounts: list[Json] = [{"name": "tasks", "mountPath": TASKS_FOLDER, "readOnly": True}]
    sources = [
        {"configMap": {"name": source.name, "items": [{"key": source.key, "path": f"{task.name}/data.jsonl"}]}}
        for task in inputs.spec.patterns.tasks
        if (source := task.calibration.config_map) is not None
    ]
    if sources:
        volumes.append({"name": "calibration", "projected": {"sources": sources}})
        mounts.append({"name": "calibration", "mountPath": CALIBRATION_FOLDER, "readOnly": True})
    return volumes, mounts


def _parallelism(inputs: Inputs) -> int:
    return min(inputs.spec.jobs.parallelism, len(inputs.spec.patterns.tasks))


def _flags(options: list[tuple[str, str]]) -> list[str]:
    return [part for name, value in options if value for part in (name, value)]
