"""Tasks of lm-evaluation-harness as examples: training ones to calibrate with, test ones to ask.

The library is an extra (`pip install premoe[harness]`), imported when a recipe names one of its tasks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from premoe_runtime.formats.errors import InvalidInput, NotFound
from premoe_runtime.offline.calibration import Example, Message


def harness_examples(name: str, include: str = "") -> tuple[list[Example], list[Example]]:
    """Test and calibration examples of a task, of the library's or of the folder ``include``.

    Raises NotFound (library, task), InvalidInput (no test or training examples with one answer).
    """
    task = _task(name, include)
    test = task.test_docs() if task.has_test_docs() else task.validation_docs() if task.has_validation_docs() else []
    training = task.training_docs() if task.has_training_docs() else []
    asked, calibration = _examples(task, test), _examples(task, training)
    if not asked or not calibration:
        missing = "training" if asked else "test or validation"
        raise InvalidInput(
            f"harness task {name!r} has no {missing} examples with one answer each; give data and calibration",
            reason="HARNESS_TASK",
        )
    return asked, calibration


def _task(name: str, include: str) -> Any:
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise NotFound(
            "lm-evaluation-harness is not installed; install premoe[harness]", reason="HARNESS_MISSING"
        ) from error
    manager = TaskManager(include_path=include or None)
    if name not in manager.all_subtasks:
        raise NotFound(
            f"lm-evaluation-harness has no task {name!r}; `lm-eval ls tasks` lists them", reason="HARNESS_TASK"
        )
    return manager.load_task_or_group(name)[name]


def _examples(task: Any, documents: Iterable[Any]) -> list[Example]:
    """Prompt and right answer of every document that has one of each."""
    found = []
    for line, document in enumerate(documents, start=1):
        prompt, target = task.doc_to_text(document), task.doc_to_target(document)
        if isinstance(target, int):
            choices = task.doc_to_choice(document)
            target = choices[target] if 0 <= target < len(choices) else ""
        if isinstance(prompt, str) and isinstance(target, str) and prompt.strip() and target.strip():
            found.append(Example((Message("user", prompt),), target, line))
    return found
