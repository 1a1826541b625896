"""Measuring profiles on the full model. Torch comes with the first task: most faults are told before."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from premoe_runtime.offline.calibration import Answers, Example, PassedOver
from premoe_runtime.offline.profile.record import Profile
from premoe_runtime.packs.reader import PackReader
from premoe_worker.jobs.progress import Lines
from premoe_worker.jobs.tasks import Task

if TYPE_CHECKING:
    from premoe_runtime.engines.hf.model import SlotModel

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Machine:
    """Where and how a model runs; None and "auto" leave it to torch and the checkpoint."""

    device: str = "cpu"
    threads: int | None = None
    dtype: str = "auto"


class Measurer:
    """The full model, loaded for the first task and kept for the others."""

    def __init__(self, reader: PackReader, machine: Machine, answers: Answers) -> None:
        self._reader = reader
        self._machine = machine
        self._answers = answers
        self._model: SlotModel | None = None

    def measure(self, task: Task, examples: Sequence[Example]) -> Profile:
        """One pass over the examples. Raises what ``load_full_model`` and ``measure_profile`` raise."""
        from premoe_runtime.offline.profile.measure import load_full_model, measure_profile

        if self._model is None:
            machine = self._machine
            self._model = load_full_model(
                self._reader, threads=machine.threads, device=machine.device, dtype=machine.dtype
            )
        lines = Lines(f"profiling {task.name}", unit="prompts")
        lines.total(len(examples))
        unused = PassedOver()
        profile = measure_profile(
            self._model,
            examples,
            task=task.name,
            answers=self._answers,
            where=task.data,
            advance=lines.advance,
            passed_over=unused,
        )
        if unused.note:
            log.warning("task %s: %s", task.name, unused.note)
        return profile
