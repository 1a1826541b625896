"""Tasks and their data as command lines name them: ``NAME=FILE``, repeatable."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.offline.calibration import check_task


def task_files(tasks: Sequence[str]) -> dict[str, Path]:
    """Every task's file. Raises click.UsageError without a file, InvalidInput for a bad name or one named twice."""
    files: dict[str, Path] = {}
    for text in tasks:
        task, equals, file = text.partition("=")
        check_task(task)
        if not (equals and file):
            raise click.UsageError(f"--task {task} names no file; give --task {task}=FILE")
        if task in files:
            raise InvalidInput(f"--task names {task!r} twice; join the files", reason="TASK_TWICE")
        files[task] = Path(file)
    return files
