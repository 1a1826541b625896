"""Tasks and their data as command lines name them: ``NAME=FILE``, repeatable."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.offline.calibration import check_task


def task_files(named: Sequence[str], option: str = "--task") -> dict[str, Path]:
    """Every task's file. Raises click.UsageError without a file, InvalidInput for a bad name or one named twice."""
    files: dict[str, Path] = {}
    for text in named:
        task, equals, file = text.partition("=")
        if not (equals and file):
            raise click.UsageError(f"{option} {text} names no file; give {option} TASK=FILE")
        check_task(task)
        if task in files:
            raise InvalidInput(f"{option} names {task!r} twice; join the files", reason="TASK_TWICE")
        files[task] = Path(file)
    return files
