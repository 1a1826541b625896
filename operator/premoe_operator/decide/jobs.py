"""What the Jobs have come to. A finished Job's result is its pods' last words, kept in an annotation on the Job.

The annotation outlives the pods, so the pods of a Job are read once, when it has finished.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from premoe_operator.api.names import ANNOTATION_RESULT, LABEL_COMPONENT, LABEL_JOB_INPUTS
from premoe_operator.api.reasons import Reason
from premoe_operator.decide.pods import Trouble, last_words
from premoe_operator.kube.objects import Json, annotation, controller_of, uid_of

Phase = Literal["Pending", "Running", "Suspended", "Complete", "Failed"]

_FAILED_REASONS = {"pack": Reason.PACK_FAILED, "profile": Reason.PROFILE_FAILED, "patterns": Reason.PATTERNS_FAILED}
_CALIBRATION_CODES = ("CALIBRATION", "PROMPTS", "TASK")
_BAD_INPUT_EXIT_CODES = (2, 3, 5)


@dataclass(frozen=True, slots=True)
class JobState:
    """One Job, or the wish for one (Pending)."""

    phase: Phase = "Pending"
    result: Json = field(default_factory=dict)
    """What its pods said last; of a failed Job also pod, exitCode and time."""
    completed: int = 0
    """Indexes, or pods, that have succeeded."""
    is_read: bool = True
    """False for a finished Job whose result nobody has read yet."""
    deadline_exceeded: bool = False

    @property
    def is_finished(self) -> bool:
        return self.phase in ("Complete", "Failed")


def job_state(job: Json | None) -> JobState:
    """The state that the Job itself shows."""
    if job is None:
        return JobState()
    status: dict[str, Any] = job.get("status") or {}
    conditions = {entry["type"]: entry for entry in status.get("conditions") or [] if entry.get("status") == "True"}
    completed = _completed(status)
    if "Complete" in conditions or "Failed" in conditions:
        text = annotation(job, ANNOTATION_RESULT)
        return JobState(
            phase="Complete" if "Complete" in conditions else "Failed",
            result=_parsed(text),
            completed=completed,
            is_read=bool(text),
            deadline_exceeded=conditions.get("Failed", {}).get("reason") == "DeadlineExceeded",
        )
    if job.get("spec", {}).get("suspend"):
        return JobState(phase="Suspended", completed=completed)
    return JobState(phase="Running" if status.get("active") or completed else "Pending", completed=completed)


def job_inputs(job: Json) -> tuple[str, str]:
    """What a Job does, and the hash of what from: equal for all tries of one thing."""
    labels: dict[str, str] = job["metadata"].get("labels") or {}
    return labels.get(LABEL_COMPONENT, ""), labels.get(LABEL_JOB_INPUTS, "")


def result_of(job: Json, pods: Iterable[Json]) -> Json | None:
    """The result that a finished Job's pods left; ``None`` when no pod is left that says it."""
    own = [pod for pod in pods if (controller_of(pod) or {}).get("uid") == uid_of(job)]
    failed = job_state(job).phase == "Failed"
    newest: tuple[str, Json] | None = None
    for pod in own:
        for container in pod.get("status", {}).get("containerStatuses") or []:
            ended = (container.get("state") or {}).get("terminated")
            if not ended or failed == (ended.get("exitCode") == 0):
                continue
            words = last_words(container)
            if failed:
                words = {
                    "reason": words.get("reason") or ended.get("reason") or "",
                    "message": words.get("message") or ended.get("message") or "",
                    "pod": pod["metadata"]["name"],
                    "exitCode": ended.get("exitCode"),
                    "time": ended.get("finishedAt") or "",
                }
            when = str(ended.get("finishedAt") or "")
            if words and (newest is None or when > newest[0]):
                newest = (when, words)
    if newest is not None:
        return newest[1]
    # A failed Job whose pods are gone has still failed; a complete one without a result must run again.
    return {"reason": "", "message": ""} if failed else None


def failure_reason(component: str, state: JobState) -> tuple[Reason, str]:
    """Reason and sentence of a failed Job."""
    if state.deadline_exceeded:
        return Reason.DEADLINE_EXCEEDED, f"the {component} Job took longer than spec.jobs.timeoutSeconds"
    code = str(state.result.get("reason", ""))
    message = str(state.result.get("message") or f"the {component} Job failed; see the logs of its pods")
    if code == "OOMKilled":
        return Reason.OOM_KILLED, f"the {component} Job went over its memory limit (spec.jobs.resources)"
    if code == "MODEL_ID_MISMATCH":
        return Reason.MODEL_ID_MISMATCH, f"{message}; spec.model.modelId says which content is wanted"
    if code == "SCORE_UNSUPPORTED":
        return Reason.METRIC_UNSUPPORTED, f"{message}; choose another spec.patterns.metric"
    bad_input = state.result.get("exitCode") in _BAD_INPUT_EXIT_CODES
    if component == "profile" and bad_input and (not code or code.startswith(_CALIBRATION_CODES)):
        return Reason.CALIBRATION_INVALID, message
    return _FAILED_REASONS[component], message


def running_trouble(component: str, found: Iterable[Trouble]) -> Trouble | None:
    """What keeps the pods of a Job that has not finished from running."""
    return next((trouble for trouble in found if trouble.component == component), None)


def result_patch(job: Json, result: Json) -> Json:
    """Merge patch that keeps the result on the Job; refused when the Job was replaced meanwhile."""
    text = json.dumps(result, sort_keys=True, ensure_ascii=False)
    return {"metadata": {"uid": uid_of(job), "annotations": {ANNOTATION_RESULT: text}}}


def _completed(status: dict[str, Any]) -> int:
    indexes = status.get("completedIndexes")
    if not indexes:
        return int(status.get("succeeded") or 0)
    count = 0
    for part in str(indexes).split(","):
        first, _, last = part.partition("-")
        count += int(last or first) - int(first) + 1
    return count


def _parsed(text: str) -> Json:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
