"""Conditions as whole values, and what pods and Jobs say that they rest on."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from premoe_operator.api.names import ANNOTATION_RESULT
from premoe_operator.api.reasons import ConditionType, Reason
from premoe_operator.api.status import Condition, PrunedModelStatus
from premoe_operator.decide.conditions import Verdict, dated, summed_up
from premoe_operator.decide.events import ready_event
from premoe_operator.decide.jobs import JobState, failure_reason, job_state, result_of
from premoe_operator.decide.pods import troubles, waits_for_containers
from premoe_operator.decide.situation import WorkerCounts
from premoe_operator.kube.objects import Json

EARLY, LATE = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"

GOOD = {
    ConditionType.SPEC_ACCEPTED: Verdict("True", Reason.ACCEPTED),
    ConditionType.CHILDREN_APPLIED: Verdict("True", Reason.APPLIED),
    ConditionType.ARTIFACTS_READY: Verdict("True", Reason.PACKED),
    ConditionType.WORKERS_AVAILABLE: Verdict("True", Reason.ALL_READY),
    ConditionType.PROGRESSING: Verdict("False", Reason.ROLLED_OUT),
}
SERVING = WorkerCounts(wanted=2, replicas=2, ready=2, updated=2)


def before(**status: str) -> list[Condition]:
    return [
        Condition(type=kind, status=value, reason="Old", last_transition_time=EARLY, observed_generation=1)  # type: ignore[arg-type]
        for kind, value in status.items()
    ]


def test_the_time_is_kept_while_the_status_is_equal() -> None:
    verdicts = {
        ConditionType.READY: Verdict("True", Reason.ALL_READY, "m"),
        ConditionType.AVAILABLE: Verdict("False", Reason.LOADING),
    }
    assert dated(verdicts, before(Ready="True", Available="True", Gone="True"), generation=3, now=LATE) == [
        Condition(
            type="Ready",
            status="True",
            reason="AllReady",
            message="m",
            last_transition_time=EARLY,
            observed_generation=3,
        ),
        Condition(type="Available", status="False", reason="Loading", last_transition_time=LATE, observed_generation=3),
    ]


@pytest.mark.parametrize(
    ("changes", "counts", "suspended", "ready", "available"),
    [
        ({}, SERVING, False, ("True", "AllReady"), ("True", "AllReady")),
        (
            {ConditionType.SPEC_ACCEPTED: Verdict("False", Reason.BUDGET_IMPOSSIBLE)},
            SERVING,
            False,
            ("False", "BudgetImpossible"),
            ("True", "AllReady"),
        ),
        (
            {ConditionType.WORKERS_AVAILABLE: Verdict("False", Reason.OOM_KILLED)},
            WorkerCounts(wanted=2, replicas=2, ready=1, updated=2),
            False,
            ("False", "OOMKilled"),
            ("True", "Loading"),
        ),
        (
            {ConditionType.WORKERS_AVAILABLE: Verdict("False", Reason.LOADING)},
            WorkerCounts(wanted=2),
            False,
            ("False", "Loading"),
            ("False", "Loading"),
        ),
        (
            {ConditionType.PROGRESSING: Verdict("True", Reason.ROLLING_OUT)},
            SERVING,
            False,
            ("False", "RollingOut"),
            ("True", "AllReady"),
        ),
        (
            {ConditionType.PROGRESSING: Verdict("False", Reason.PROGRESS_DEADLINE_EXCEEDED)},
            SERVING,
            False,
            ("False", "ProgressDeadlineExceeded"),
            ("True", "AllReady"),
        ),
        (
            {ConditionType.WORKERS_AVAILABLE: Verdict("True", Reason.SCALED_TO_ZERO)},
            WorkerCounts(),
            False,
            ("True", "ScaledToZero"),
            ("False", "ScaledToZero"),
        ),
        (
            {ConditionType.WORKERS_AVAILABLE: Verdict("True", Reason.SUSPENDED)},
            WorkerCounts(),
            True,
            ("True", "Suspended"),
            ("False", "Suspended"),
        ),
        (
            {ConditionType.TEMPLATE_OUTDATED: Verdict("True", Reason.TEMPLATE_OUTDATED)},
            SERVING,
            False,
            ("True", "AllReady"),
            ("True", "AllReady"),
        ),
    ],
)
def test_the_two_sums(
    changes: dict[ConditionType, Verdict],
    counts: WorkerCounts,
    suspended: bool,
    ready: tuple[str, str],
    available: tuple[str, str],
) -> None:
    verdicts = summed_up({**GOOD, **changes}, counts=counts, suspended=suspended)
    assert (verdicts[ConditionType.READY].status, verdicts[ConditionType.READY].reason) == ready
    assert (verdicts[ConditionType.AVAILABLE].status, verdicts[ConditionType.AVAILABLE].reason) == available


def pod(container: Json | None = None, *, phase: str = "Pending", component: str = "worker", **status: Any) -> Json:
    containers = [] if container is None else [{"name": "c", "image": "registry.example/x:1", **container}]
    return {
        "metadata": {"name": "p", "uid": "u", "labels": {"app.kubernetes.io/component": component}},
        "status": {"phase": phase, "containerStatuses": containers, **status},
    }


def waiting(reason: str, message: str = "") -> Json:
    return {"state": {"waiting": {"reason": reason, "message": message}}}


def ended(exit_code: int, message: str = "", reason: str = "Error") -> Json:
    return {"terminated": {"exitCode": exit_code, "message": message, "reason": reason, "finishedAt": EARLY}}


REFUSED_ARGUMENT = (
    '{"reason": "ENGINE_ARGUMENT", "message": "vLLM refuses its arguments: block_size: must be a multiple of 16"}'
)


@pytest.mark.parametrize(
    ("given", "reason", "message"),
    [
        (
            pod(conditions=[{"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}]),
            "Unschedulable",
            "0/3 nodes are available",
        ),
        (
            pod(waiting("ImagePullBackOff", "Back-off")),
            "ImagePullFailed",
            "image registry.example/x:1 cannot be pulled: Back-off",
        ),
        (
            pod(waiting("CreateContainerConfigError", 'secret "s3" not found')),
            "SecretNotFound",
            "Secret s3 does not exist",
        ),
        (
            pod(waiting("CreateContainerConfigError", 'configmap "c" not found')),
            "ConfigMapNotFound",
            "ConfigMap c does not exist",
        ),
        (
            pod(waiting("CreateContainerConfigError", "couldn't find key K in Secret a/s3")),
            "SecretNotFound",
            "Secret s3 has no key K",
        ),
        (
            pod(waiting("CreateContainerConfigError", "something else")),
            "VolumeNotReady",
            "something else",
        ),
        (
            pod({"state": ended(137, reason="OOMKilled")}, phase="Running"),
            "OOMKilled",
            "the container went over its memory limit",
        ),
        (
            pod({**waiting("CrashLoopBackOff"), "lastState": ended(2, '{"reason": "X", "message": "bad  flag"}')}),
            "WorkerFailed",
            "bad flag",
        ),
        (
            pod({**waiting("CrashLoopBackOff"), "lastState": ended(2, REFUSED_ARGUMENT)}),
            "EngineRefused",
            "vLLM refuses its arguments: block_size: must be a multiple of 16",
        ),
        (
            pod({"state": ended(2, REFUSED_ARGUMENT)}, component="pack"),
            "WorkerFailed",
            "vLLM refuses its arguments: block_size: must be a multiple of 16",
        ),
        (pod({"state": ended(1)}, phase="Failed"), "WorkerFailed", "the container ended with exit code 1"),
        (pod(phase="Failed", reason="Evicted", message="node was low"), "WorkerFailed", "node was low"),
    ],
)
def test_what_is_wrong_with_a_pod(given: Json, reason: str, message: str) -> None:
    (trouble,) = troubles([given], [])
    assert (trouble.reason, trouble.message) == (reason, message)


@pytest.mark.parametrize(
    "given",
    [
        pod(waiting("ContainerCreating")),
        pod({"state": {"running": {}}, "ready": True, "lastState": ended(1)}, phase="Running"),
        pod({"state": ended(0)}, phase="Succeeded"),
    ],
)
def test_nothing_is_wrong_with_a_pod(given: Json) -> None:
    assert troubles([given], []) == ()


NO_NODE = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}


@pytest.mark.parametrize(
    ("given", "reasons"),
    [
        (pod(waiting("ImagePullBackOff"), conditions=[NO_NODE]), ["ImagePullFailed"]),
        (pod({"state": {"running": {}}, "ready": True}, phase="Running", conditions=[NO_NODE]), []),
        ({**pod(conditions=[NO_NODE]), "spec": {"nodeName": "n"}}, []),
    ],
)
def test_a_late_word_of_the_scheduler_is_not_heard(given: Json, reasons: list[str]) -> None:
    assert [trouble.reason for trouble in troubles([given], [])] == reasons


def test_a_missing_secret_of_a_volume_shows_in_an_event() -> None:
    event = {"involvedObject": {"uid": "u"}, "reason": "FailedMount", "message": 'secret "tls" not found'}
    (trouble,) = troubles([pod(waiting("ContainerCreating"))], [event])
    assert (trouble.reason, trouble.message) == ("SecretNotFound", "Secret tls does not exist")


def test_a_missing_pull_secret_is_named() -> None:
    said = "Unable to retrieve some image pull secrets (pull); attempting to pull the image may not succeed."
    event = {"involvedObject": {"uid": "u"}, "reason": "FailedToRetrieveImagePullSecret", "message": said}
    given = pod(waiting("ImagePullBackOff", "Back-off"))
    given["spec"] = {"nodeName": "n"}
    assert waits_for_containers(given)
    (trouble,) = troubles([given], [event])
    assert (trouble.reason, trouble.message) == (
        "SecretNotFound",
        "pull Secret pull does not exist, and image registry.example/x:1 cannot be pulled: Back-off",
    )


def test_a_job_without_pods_shows_the_quota() -> None:
    event = {
        "involvedObject": {"kind": "Job", "name": "my-chat-pack-01234-5678", "uid": "j"},
        "reason": "FailedCreate",
        "message": "pods is forbidden: exceeded quota: one",
    }
    (trouble,) = troubles([], [event])
    assert (trouble.component, trouble.reason) == ("pack", "QuotaExceeded")


def job(kind: str = "", **status: Any) -> Json:
    conditions = [{"type": kind, "status": "True", **status.pop("condition", {})}] if kind else []
    return {"metadata": {"name": "j", "uid": "j1"}, "spec": {}, "status": {"conditions": conditions, **status}}


@pytest.mark.parametrize(
    ("given", "phase", "completed"),
    [
        (None, "Pending", 0),
        (job(), "Pending", 0),
        (job(active=1), "Running", 0),
        (job(active=1, completedIndexes="0,2-4"), "Running", 4),
        (job("Complete", succeeded=1), "Complete", 1),
        (job("Failed"), "Failed", 0),
        (job("SuccessCriteriaMet", active=0), "Pending", 0),
        ({**job(), "spec": {"suspend": True}}, "Suspended", 0),
    ],
)
def test_how_far_a_job_is(given: Json | None, phase: str, completed: int) -> None:
    state = job_state(given)
    assert (state.phase, state.completed) == (phase, completed)


def job_pod(exit_code: int, message: str, uid: str = "j1", finished: str = EARLY) -> Json:
    status = {"state": {"terminated": {"exitCode": exit_code, "message": message, "finishedAt": finished}}}
    reference = {"uid": uid, "controller": True}
    return {"metadata": {"name": "p", "ownerReferences": [reference]}, "status": {"containerStatuses": [status]}}


def test_the_result_is_the_last_words_of_its_own_good_pod() -> None:
    pods = [job_pod(1, '{"reason": "X"}'), job_pod(0, '{"modelId": "b"}'), job_pod(0, '{"modelId": "c"}', uid="other")]
    assert result_of(job("Complete"), pods) == {"modelId": "b"}
    assert result_of(job("Complete"), pods[:1]) is None
    assert result_of(job("Complete"), [job_pod(0, "no json")]) is None


def test_the_result_of_a_failed_job_names_pod_and_code() -> None:
    found = result_of(job("Failed"), [job_pod(3, '{"reason": "SOURCE_NOT_FOUND", "message": "none"}')])
    assert found == {"reason": "SOURCE_NOT_FOUND", "message": "none", "pod": "p", "exitCode": 3, "time": EARLY}
    assert result_of(job("Failed"), []) == {"reason": "", "message": ""}


def test_a_kept_result_is_read_back() -> None:
    given = job("Complete")
    assert not job_state(given).is_read
    given["metadata"]["annotations"] = {ANNOTATION_RESULT: '{"modelId": "b"}'}
    assert job_state(given) == JobState(phase="Complete", result={"modelId": "b"})


@pytest.mark.parametrize(
    ("component", "state", "reason"),
    [
        ("pack", JobState("Failed", {"reason": "X", "message": "m", "exitCode": 3}), "PackFailed"),
        ("profile", JobState("Failed", {"reason": "CALIBRATION_SYNTAX", "exitCode": 2}), "CalibrationInvalid"),
        ("profile", JobState("Failed", {"reason": "UNAVAILABLE", "exitCode": 6}), "ProfileFailed"),
        ("profile", JobState("Failed", {"reason": "SCORE_UNSUPPORTED", "exitCode": 2}), "MetricUnsupported"),
        ("patterns", JobState("Failed", {}), "PatternsFailed"),
        ("pack", JobState("Failed", {"reason": "OOMKilled", "exitCode": 137}), "OOMKilled"),
        ("pack", JobState("Failed", {}, deadline_exceeded=True), "DeadlineExceeded"),
    ],
)
def test_why_a_job_failed(component: str, state: JobState, reason: str) -> None:
    assert failure_reason(component, state)[0] == reason


def status(value: Literal["True", "False"], reason: str) -> PrunedModelStatus:
    ready = Condition(type="Ready", status=value, reason=reason, last_transition_time=EARLY, observed_generation=1)
    return PrunedModelStatus(conditions=[ready])


MODEL: Json = {
    "apiVersion": "premoe.dev/v1alpha1",
    "kind": "PrunedModel",
    "metadata": {"name": "chat", "namespace": "a", "uid": "u"},
}


def test_an_event_for_each_change_of_ready() -> None:
    assert ready_event(MODEL, status("True", "AllReady"), status("True", "AllReady"), LATE) is None
    failed = ready_event(MODEL, status("True", "AllReady"), status("False", "OOMKilled"), LATE)
    again = ready_event(MODEL, status("True", "AllReady"), status("False", "OOMKilled"), EARLY)
    mended = ready_event(MODEL, status("False", "OOMKilled"), status("True", "AllReady"), LATE)
    assert failed is not None
    assert again is not None
    assert mended is not None
    assert (failed["type"], failed["reason"]) == ("Warning", "OOMKilled")
    assert (mended["type"], mended["reason"]) == ("Normal", "AllReady")
    assert failed["metadata"]["name"] == again["metadata"]["name"] != mended["metadata"]["name"]
