"""What an evaluation asks: test prompts of each task, and a calibration text of its own for every seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.offline.calibration import Example, calibration_digest
from premoe_runtime.offline.patterns.build import MIN_PROMPTS

DOCUMENTS = 128
"""Calibration prompts of a task and a seed."""
PROMPTS = 64
"""Test prompts of a task."""
TEST_SHARE = 3
"""Of one file that holds both, one part in so many is asked."""


@dataclass(frozen=True, slots=True)
class TaskData:
    """``calibration``: one text a seed; ``test``: prompts with answers, none of which is in any of the texts."""

    calibration: tuple[tuple[Example, ...], ...]
    test: tuple[Example, ...]


def drawn(
    task: str,
    test: Sequence[Example],
    calibration: Sequence[Example] = (),
    *,
    seeds: int,
    documents: int = DOCUMENTS,
    prompts: int = PROMPTS,
) -> TaskData:
    """Cut a task's examples into a test and one text a seed, which share nothing. Each prompt counts once.

    Without ``calibration``, a third of ``test`` at most is asked and the rest is calibration. Examples are taken in
    the order of their digests: the same on every machine, and not that of the file. Raises InvalidInput when a seed
    would have fewer than 20 prompts, or nothing is left to ask.
    """
    asked = _unlike(test)
    if calibration:
        given = {_prompt(one) for one in asked[:prompts]}
        pool = [one for one in _unlike(calibration) if _prompt(one) not in given]
    else:
        cut = min(prompts, math.ceil(len(asked) / TEST_SHARE))
        asked, pool = asked[:cut], asked[cut:]
    each = min(documents, len(pool) // seeds)
    if each < MIN_PROMPTS:
        raise InvalidInput(
            f"task {task}: {len(pool)} calibration prompts that are no test prompts do not make {seeds} texts of "
            f"{MIN_PROMPTS}; give {seeds * MIN_PROMPTS} or more, or fewer --seeds",
            reason="CALIBRATION_EMPTY",
        )
    texts = tuple(tuple(pool[seed::seeds][:each]) for seed in range(seeds))
    return TaskData(texts, tuple(asked[:prompts]))


def check_tasks(data: Mapping[str, TaskData]) -> int:
    """How many seeds all tasks have. Raises InvalidInput: no task, or one with other seeds or nothing to ask."""
    counts = {len(task.calibration) for task in data.values()}
    if len(counts) != 1 or not min(counts) or not all(task.test for task in data.values()):
        raise InvalidInput(
            "every task needs test prompts and as many calibration texts as the others; give --data TASK=FILE",
            reason="TASKS_MISSING",
        )
    return counts.pop()


def _unlike(examples: Sequence[Example]) -> list[Example]:
    """The examples by digest, the first of each prompt."""
    found: dict[tuple[tuple[str, str], ...], Example] = {}
    for one in sorted(examples, key=lambda one: calibration_digest([one])):
        found.setdefault(_prompt(one), one)
    return list(found.values())


def _prompt(example: Example) -> tuple[tuple[str, str], ...]:
    return tuple((message.role, message.content) for message in example.messages)
