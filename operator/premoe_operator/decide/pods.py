"""What is wrong with pods: read from their status, their containers' last words and the Warning events about them.

Secrets are never read: a missing one shows as CreateContainerConfigError (environment) or as a FailedMount event
(volume), kubelet's message naming it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from premoe_operator.api.reasons import Reason
from premoe_operator.kube.objects import Json, is_deleting, uid_of

MESSAGE_MAX = 400

_IMAGE_REASONS = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})
_ENGINE_CODES = frozenset(
    {"ENGINE_ARGUMENT", "ENGINE_UNSUPPORTED", "DEVICE_INVALID", "VLLM_MISSING", "VLLM_UNSUPPORTED"}
)
"""Of workers whose engine will never take the arguments, the model or the device that they were given."""
_MISSING = re.compile(r'(?P<kind>secret|configmap) "(?P<name>[^"]+)" not found', re.IGNORECASE)
_MISSING_KEY = re.compile(
    r"couldn't find key (?P<key>\S+) in (?P<kind>Secret|ConfigMap) (?P<name>\S+)|"
    r"references non-existent (?P<kind2>secret|config) key: (?P<key2>\S+)"
)

_PULL_SECRETS = re.compile(r"image pull secrets? \((?P<names>[^)]+)\)")


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a pod does not run."""

    pod: str
    component: str
    reason: Reason
    message: str
    time: str
    """RFC 3339, of the container's end or the pod's condition."""
    exit_code: int | None = None
    code: str = ""
    """UPPER_SNAKE reason that our own process gave, if it did."""


def troubles(pods: Iterable[Json], events: Sequence[Json]) -> tuple[Trouble, ...]:
    """One entry for each pod in trouble, the latest first."""
    by_object: dict[str, list[Json]] = {}
    for event in events:
        by_object.setdefault(event.get("involvedObject", {}).get("uid", ""), []).append(event)
    found = [_trouble(pod, by_object.get(uid_of(pod), [])) for pod in pods if not is_deleting(pod)]
    found += [_refused_pods(event) for event in events if event.get("involvedObject", {}).get("kind") == "Job"]
    return tuple(sorted(filter(None, found), key=lambda trouble: trouble.time, reverse=True))


def last_words(status: Mapping[str, Any]) -> Json:
    """The JSON line of a container's termination message; empty when it left none."""
    terminated = (status.get("state") or {}).get("terminated") or {}
    try:
        words = json.loads(terminated.get("message") or "")
    except ValueError:
        return {}
    return words if isinstance(words, dict) else {}


def component_of(pod: Mapping[str, Any]) -> str:
    return str((pod["metadata"].get("labels") or {}).get("app.kubernetes.io/component", ""))


def is_finished(pod: Mapping[str, Any]) -> bool:
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def _trouble(pod: Json, events: list[Json]) -> Trouble | None:
    status = pod.get("status", {})
    if status.get("phase") == "Succeeded":
        return None
    containers = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    conditions = {entry["type"]: entry for entry in status.get("conditions") or []}
    unscheduled = conditions.get("PodScheduled", {})
    # Where kubelet speaks there is a node, whatever a scheduler that was still trying says last.
    has_node = bool(pod.get("spec", {}).get("nodeName") or containers)
    if unscheduled.get("status") == "False" and not has_node:
        when = unscheduled.get("lastTransitionTime", "")
        return _make(pod, Reason.UNSCHEDULABLE, unscheduled.get("message", "no node has room"), when)
    for container in containers:
        found = _container_trouble(pod, container, events)
        if found is not None:
            return found
    if status.get("phase") == "Failed":
        when = status.get("startTime", "")
        return _make(pod, Reason.WORKER_FAILED, status.get("message") or status.get("reason") or "the pod failed", when)
    return _mount_trouble(pod, events) if status.get("phase") == "Pending" else None


def _container_trouble(pod: Json, container: Json, events: list[Json]) -> Trouble | None:
    waiting = (container.get("state") or {}).get("waiting") or {}
    created = pod["metadata"].get("creationTimestamp", "")
    if waiting.get("reason") in _IMAGE_REASONS:
        message = f"image {container.get('image')} cannot be pulled: {waiting.get('message', '')}"
        secret = _missing_pull_secret(events)
        if secret:
            return _make(pod, Reason.SECRET_NOT_FOUND, f"{secret}, and {message}", created)
        return _make(pod, Reason.IMAGE_PULL_FAILED, message, created)
    if waiting.get("reason") == "CreateContainerConfigError":
        return _make(pod, *_missing_object(waiting.get("message", "")), created)
    # A container that restarts shows its end in lastState; one that does not, in state.
    for holder in (container.get("state") or {}, container.get("lastState") or {}):
        ended = holder.get("terminated")
        if ended and ended.get("exitCode") and not container.get("ready"):
            return _ended(pod, holder, ended)
    return None


def _ended(pod: Json, holder: Json, ended: Json) -> Trouble:
    words = last_words({"state": holder})
    when = ended.get("finishedAt", "")
    exit_code = int(ended["exitCode"])
    if ended.get("reason") == "OOMKilled":
        return _make(pod, Reason.OOM_KILLED, "the container went over its memory limit", when, exit_code)
    message = str(words.get("message") or ended.get("message") or f"the container ended with exit code {exit_code}")
    code = str(words.get("reason", ""))
    refused = component_of(pod) == "worker" and code in _ENGINE_CODES
    return _make(pod, Reason.ENGINE_REFUSED if refused else Reason.WORKER_FAILED, message, when, exit_code, code=code)


def _mount_trouble(pod: Json, events: list[Json]) -> Trouble | None:
    mounts = [event for event in events if event.get("reason") == "FailedMount"]
    if not mounts:
        return None
    event = max(mounts, key=_event_time)
    reason, message = _missing_object(event.get("message", ""))
    return _make(pod, reason, message, _event_time(event))


def _refused_pods(event: Json) -> Trouble | None:
    """A Job whose pods the API refuses: quota, LimitRange, pod security."""
    if event.get("reason") != "FailedCreate":
        return None
    name = str(event["involvedObject"].get("name", ""))
    message = " ".join(str(event.get("message", "")).split())[:MESSAGE_MAX]
    reason = Reason.QUOTA_EXCEEDED if "exceeded quota" in message else Reason.PODS_REFUSED
    component = name.rsplit("-", 3)[-3] if name.count("-") >= 3 else ""  # <model>-<component>-<inputs>-<try>
    return Trouble(pod=name, component=component, reason=reason, message=message, time=_event_time(event))


def _missing_object(message: str) -> tuple[Reason, str]:
    """ConfigMapNotFound, SecretNotFound, or what else keeps a container from being created."""
    match = _MISSING.search(message)
    if match is not None:
        kind = match["kind"].lower()
        reason = Reason.SECRET_NOT_FOUND if kind == "secret" else Reason.CONFIG_MAP_NOT_FOUND
        return reason, f"{'Secret' if kind == 'secret' else 'ConfigMap'} {match['name']} does not exist"
    match = _MISSING_KEY.search(message)
    if match is not None:
        kind = (match["kind"] or match["kind2"]).lower()
        reason = Reason.SECRET_NOT_FOUND if kind == "secret" else Reason.CONFIG_MAP_NOT_FOUND
        name = (match["name"] or "").rpartition("/")[2]
        return reason, f"{match['kind']} {name} has no key {match['key']}" if name else message
    return Reason.VOLUME_NOT_READY, message


def _missing_pull_secret(events: list[Json]) -> str:
    """What kubelet says of pull Secrets that it could not find; a public image comes without them."""
    said = (
        str(event.get("message", "")) for event in events if event.get("reason") == "FailedToRetrieveImagePullSecret"
    )
    names = next((match["names"] for match in map(_PULL_SECRETS.search, said) if match is not None), "")
    return f"pull Secret {names} does not exist" if names else ""


def _event_time(event: Json) -> str:
    series: Json = event.get("series") or {}
    return str(series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime") or "")


def _make(
    pod: Json, reason: Reason, message: str, when: str, exit_code: int | None = None, *, code: str = ""
) -> Trouble:
    return Trouble(
        pod=pod["metadata"]["name"],
        component=component_of(pod),
        reason=reason,
        message=" ".join(message.split())[:MESSAGE_MAX],
        time=when,
        exit_code=exit_code,
        code=code,
    )


def waits_for_containers(pod: Mapping[str, Any]) -> bool:
    """Whether a pod has a node but no containers yet, for lack of a volume or image; only events say why."""
    status = pod.get("status", {})
    if status.get("phase") != "Pending" or not pod.get("spec", {}).get("nodeName"):
        return False
    containers = status.get("containerStatuses") or []
    return any(
        (entry.get("state") or {}).get("waiting", {}).get("reason") in {"ContainerCreating", *_IMAGE_REASONS}
        for entry in containers
    )
