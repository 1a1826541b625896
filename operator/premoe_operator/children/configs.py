"""The ConfigMaps: what workers keep resident, and which tasks Jobs profile."""

from __future__ import annotations

import json

from premoe_operator.api.resources import Task
from premoe_operator.children.inputs import Inputs, Obj, metadata

CALIBRATION_FOLDER = "/etc/premoe/calibration"


def residency_config(inputs: Inputs) -> Obj:
    """What workers bring in unasked; they watch the file, so that a change restarts nothing."""
    return _config(inputs, "residency", {"preload": list(inputs.spec.patterns.preload)}, "worker")


def tasks_config(inputs: Inputs) -> Obj | None:
    """The tasks in the order of the profile Job's indexes; None without tasks."""
    tasks = [_document(task) for task in inputs.spec.patterns.tasks]
    return _config(inputs, "tasks", tasks, "profile") if tasks else None


def tasks_config_name(inputs: Inputs) -> str:
    return f"{inputs.owner.name}-tasks"


def _document(task: Task) -> Obj:
    data = task.calibration.uri or f"{CALIBRATION_FOLDER}/{task.name}/data.jsonl"
    return {"name": task.name, "data": data, **({} if task.samples is None else {"samples": task.samples})}


def _config(inputs: Inputs, what: str, document: object, component: str) -> Obj:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(inputs, f"{inputs.owner.name}-{what}", component),
        "data": {f"{what}.json": json.dumps(document)},
    }
