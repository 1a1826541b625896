"""The file that lists the tasks of a model: ``[{"name": …, "data": …, "samples": …?}]``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from premoe_runtime.formats.errors import InvalidInput, NotFound
from premoe_runtime.offline.calibration import Answers, Example, PassedOver, check_task, load_calibration

log = logging.getLogger(__name__)


class Task(BaseModel):
    """One task and where its calibration data lies: a path, or the URL of an object."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    data: str = Field(min_length=1)
    samples: int | None = Field(default=None, ge=1)

    def examples(self, answers: Answers) -> list[Example]:
        """Its calibration data. Raises NotFound and InvalidInput (with the line), and Unavailable for an object."""
        unused = PassedOver()
        examples = load_calibration(self.data, answers=answers, limit=self.samples, passed_over=unused)
        if unused.note:
            log.warning("task %s: %s", self.name, unused.note)
        return examples


_TASKS = TypeAdapter(tuple[Task, ...])


def read_tasks(path: Path) -> tuple[Task, ...]:
    """Raises NotFound, and InvalidInput for a file that is no list of differently named tasks."""
    try:
        tasks = _TASKS.validate_json(path.read_bytes())
    except FileNotFoundError:
        raise NotFound(f"{path}: no such file of tasks", reason="TASKS_NOT_FOUND") from None
    except OSError as error:
        raise _invalid(f"{path}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in fault["loc"])
        raise _invalid(f"{path}: {place + ': ' if place else ''}{fault['msg']}") from None
    if not tasks:
        raise _invalid(f"{path}: lists no task")
    for task in tasks:
        check_task(task.name)
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise _invalid(f"{path}: task {name} is listed twice")
    return tasks


def chosen(tasks: Sequence[Task], index: int | None) -> Sequence[Task]:
    """The task of an Indexed Job's pod, or all of them. Raises InvalidInput."""
    if index is None:
        return tasks
    if not 0 <= index < len(tasks):
        raise _invalid(f"there is no task {index}; the file lists {len(tasks)}")
    return (tasks[index],)


def _invalid(message: str) -> InvalidInput:
    return InvalidInput(message, reason="TASKS_INVALID")
