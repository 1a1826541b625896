"""Measuring profiles on the full model. Torch comes with the first task: most faults are told before."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from premoe_runtime.offline.calibration import Answers, Example, PassedOver
from premoe_runtime.offline.profile.record import Profile
from premoe_runtime.packs.reader import PackReader
from premoe_runtime.storage import Store
from premoe_worker.jobs.progress import Lines
from premoe_worker.jobs.tasks import Task

if TYPE_CHECKING:
    from premoe_runtime.engines.hf.model import SlotModel
    from premoe_runtime.offline.profile.unfinished import Unfinished

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Machine:
    """Where and how a model runs; None and "auto" leave it to torch and the checkpoint.

    ``memory``: bytes that it may take; None: what is free, by the container's limit, too. ``spool``: folder for layer
    inputs of a model that does not fit.
    """

    device: str = "cpu"
    threads: int | None = None
    dtype: str = "auto"
    memory: int | None = None
    spool: Path | None = None


class Measurer:
    """The full model, loaded for the first task and kept for the others, or one layer of it at a time.

    A task that was stopped goes on behind its last finished batch, or layer; ``store`` has what it had added up.
    """

    def __init__(
        self, store: Store, reader: PackReader, machine: Machine, answers: Answers, scores: Sequence[str]
    ) -> None:
        self._store = store
        self._reader = reader
        self._machine = machine
        self._answers = answers
        self._scores = scores
        self._model: SlotModel | None = None

    def measure(self, task: Task, examples: Sequence[Example]) -> Profile:
        """One pass over the examples. Raises what ``choose_way``, the loading and ``measure_profile`` raise."""
        from premoe_runtime.offline.profile.measure import measure_profile

        self._model = self._model or self._load()
        lines = Lines(f"profiling {task.name}", unit="prompts")
        lines.total(len(examples))
        unused = PassedOver()
        profile = measure_profile(
            self._model,
            examples,
            task=task.name,
            answers=self._answers,
            where=task.data,
            scores=self._scores,
            unfinished=self._unfinished(task),
            spool=self._machine.spool,
            advance=lines.advance,
            stage=lines.stage,
            passed_over=unused,
        )
        if unused.note:
            log.warning("task %s: %s", task.name, unused.note)
        return profile

    def forget(self, task: Task) -> None:
        """Its profile is stored: what a stopped measurement left goes."""
        self._unfinished(task).clear()

    def _load(self) -> SlotModel:
        from premoe_runtime.offline.profile.measure import load_blocks, load_full_model
        from premoe_runtime.offline.profile.room import choose_way

        machine = self._machine
        way = choose_way(
            self._reader, memory=machine.memory, device=machine.device, dtype=machine.dtype, scores=self._scores
        )
        log.info("%s", way.why)
        load = load_blocks if way.by_layers else load_full_model
        return load(self._reader, threads=machine.threads, device=machine.device, dtype=machine.dtype)

    def _unfinished(self, task: Task) -> Unfinished:
        from premoe_runtime.offline.profile.unfinished import Unfinished

        return Unfinished(self._store, self._reader.manifest().weights_id, task.name, log.warning)
