"""The demo's examples as the profiler and the evaluation want them. Knows no torch."""

from __future__ import annotations

from collections.abc import Sequence

from premoe_local import tasks
from premoe_runtime.offline.calibration import Example, Message


def calibration(examples: Sequence[tasks.Example]) -> list[Example]:
    """One user turn each, with its answer."""
    return [
        Example((Message("user", example.prompt),), example.answer, line)
        for line, example in enumerate(examples, start=1)
    ]
