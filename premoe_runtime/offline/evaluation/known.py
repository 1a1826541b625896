"""Answers that are measured once: what a journal has of a model is taken from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from premoe_runtime.engines.hf.model import SlotModel
from premoe_runtime.offline.calibration import Example, calibration_digest
from premoe_runtime.offline.evaluation.exam import Answers, Examiner
from premoe_runtime.offline.evaluation.journal import Journal, key_of
from premoe_runtime.offline.evaluation.outputs import Asked


class Known:
    """An examiner with a memory. Ask task by task: of one at a time it keeps what the full model gave.

    Raises like ``Examiner`` and ``Journal``.
    """

    def __init__(
        self,
        model: SlotModel,
        data: Mapping[str, Sequence[Example]],
        journal: Journal,
        *,
        spool: Path | None = None,
        passed_over: Callable[[str], None] = lambda place: None,
    ) -> None:
        self._model, self._journal = model, journal
        self._examiner = Examiner(model, data, spool=spool, passed_over=passed_over)
        self._digests = {task: calibration_digest(examples) for task, examples in data.items()}
        self._prompts = {task: len(examples) for task, examples in data.items()}

    def answers(
        self, asked: Sequence[Asked], stage: Callable[[str, float], None] = lambda what, share: None
    ) -> list[Answers]:
        """What the model gives to each; ``stage`` is told what is run, and the share of it all that was."""
        keys = [key_of(self._model, self._digests[one.task], one.kept, one.active) for one in asked]
        missing = {key: one for key, one in zip(keys, asked, strict=True) if key not in self._journal}
        done, total = 0.0, sum(self._prompts[one.task] for one in missing.values())

        def advance(prompts: float) -> None:
            nonlocal done
            done += prompts

        found = self._examiner.answers(
            tuple(missing.values()), advance=advance, stage=lambda what: stage(what, min(done / total, 1.0))
        )
        for key, each in zip(missing, found, strict=True):
            self._journal.put(key, each)
        return [self._journal[key] for key in keys]
