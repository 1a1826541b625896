"""Answers that are measured once: what a journal has of a model is taken from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from premoe_runtime.engines.hf.model import SlotModel
from premoe_runtime.formats.arrays import Mask
from premoe_runtime.offline.calibration import Example, calibration_digest
from premoe_runtime.offline.evaluation.exam import Answers, Examiner
from premoe_runtime.offline.evaluation.journal import Journal, key_of


class Known:
    """An examiner with a memory. Ask task by task: of one at a time it keeps what the full model gave.

    Raises like ``Examiner`` and ``Journal``.
    """

    def __init__(
        self,
        model: SlotModel,
        data: Mapping[str, Sequence[Example]],
        journal: Journal,
        passed_over: Callable[[str], None] = lambda place: None,
    ) -> None:
        self._model, self._journal = model, journal
        self._examiner = Examiner(model, data, passed_over=passed_over)
        self._digests = {task: calibration_digest(examples) for task, examples in data.items()}

    def full(self, task: str) -> Answers:
        """What the full model gives."""
        key = key_of(self._model, self._digests[task], None, self._model.manifest.top_k)
        if key not in self._journal:
            self._journal.put(key, self._examiner.full(task))
        return self._journal[key]

    def under(self, task: str, kept: Mask, active: int) -> Answers:
        """What the model gives with ``kept`` bool[L, E] alone, ``active`` of them a token."""
        key = key_of(self._model, self._digests[task], kept, active)
        if key not in self._journal:
            self._journal.put(key, self._examiner.under(task, kept, active))
        return self._journal[key]
