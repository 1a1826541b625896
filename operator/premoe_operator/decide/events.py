"""Kubernetes Events: one when Ready or its reason changes, nothing else. Pure.

The name is a digest of what is said, so that a repeated reconcile, or the other replica, says nothing twice.
"""

from __future__ import annotations

from premoe_operator.api.names import FIELD_MANAGER
from premoe_operator.api.reasons import Reason
from premoe_operator.api.status import Condition, PrunedModelStatus
from premoe_operator.kube.objects import Json, digest

NOTE_MAX = 1024

_FAILURES_START = list(Reason).index(Reason.SPEC_INVALID)


def ready_event(model: Json, before: PrunedModelStatus, after: PrunedModelStatus, now: str) -> Json | None:
    """The Event of a change of Ready; ``None`` when status and reason are the same."""
    old, new = _ready(before), _ready(after)
    if new is None or (old is not None and (old.status, old.reason) == (new.status, new.reason)):
        return None
    metadata = model["metadata"]
    said = [metadata["uid"], new.observed_generation, new.status, new.reason, new.last_transition_time]
    is_failure = new.reason in list(Reason)[_FAILURES_START:]
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata['name']}.{digest(said)}", "namespace": metadata["namespace"]},
        "eventTime": now.replace("Z", ".000000Z"),
        "reportingController": FIELD_MANAGER,
        "reportingInstance": FIELD_MANAGER,
        "action": "Reconcile",
        "reason": new.reason,
        "regarding": {
            "apiVersion": model["apiVersion"],
            "kind": model["kind"],
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
        },
        "note": (new.message or new.reason)[:NOTE_MAX],
        "type": "Warning" if is_failure else "Normal",
    }


def _ready(status: PrunedModelStatus) -> Condition | None:
    return next((condition for condition in status.conditions if condition.type == "Ready"), None)
