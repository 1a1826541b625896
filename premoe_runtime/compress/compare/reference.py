"""The full model as what compressed ones are compared with: its last hidden states where answers are predicted, on
disk, and its head. No vocabulary is too large for that, and none of its experts is in memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from premoe_runtime.engines.hf.calls import logits_of
from premoe_runtime.engines.hf.model import SlotModel
from premoe_runtime.offline.calibration import Example, calibration_digest
from premoe_runtime.offline.evaluation.exam import Answers, Examiner
from premoe_runtime.offline.evaluation.journal import Journal, key_of
from premoe_runtime.offline.evaluation.outputs import Asked
from premoe_runtime.offline.profile.spool import Spool


class FullModel:
    """A ``Reference``. ``head``: the same model, of which no block is in memory."""

    def __init__(self, spool: Spool, head: SlotModel) -> None:
        self._spool, self.head = spool, head

    def states(self, task: str) -> Iterator[Tensor]:
        number = 0
        while self._spool.has(name := f"{task}-{number}"):
            yield self._spool.read(name)
            number += 1

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        return logits_of(self.head.model, hidden.to(self.head.device))


def settings_of(model_id: str, arithmetic: Sequence[str], data: Mapping[str, Sequence[Example]]) -> str:
    """What hidden states depend on."""
    return json.dumps([model_id, *arithmetic, {task: calibration_digest(one) for task, one in data.items()}])


def full_answers(
    model: SlotModel,
    data: Mapping[str, Sequence[Example]],
    journal: Journal,
    kept: Spool,
    *,
    spool: Path | None,
    stage: Callable[[str], None],
    say: Callable[[str], None],
) -> dict[str, Answers]:
    """What the full model gives to every task; its states go into ``kept`` and what is there already stays."""
    keys = {task: key_of(model, calibration_digest(one), None, model.manifest.top_k) for task, one in data.items()}
    missing = [task for task, key in keys.items() if key not in journal or not kept.has(f"{task}.whole")]
    if missing:
        examiner = Examiner(model, data, spool=spool, passed_over=say)
        asked = [Asked(task, None, model.manifest.top_k, f"{task}, the full model") for task in missing]
        for one, answers in zip(asked, examiner.answers(asked, stage=stage), strict=True):
            for number, state in enumerate(examiner.states):
                kept.write(f"{one.task}-{number}", state)
            kept.write(f"{one.task}.whole", torch.zeros(1))
            journal.put(keys[one.task], answers)
    return {task: journal[key] for task, key in keys.items()}
