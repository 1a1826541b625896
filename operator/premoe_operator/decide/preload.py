"""Which of the tasks to preload the workers keep resident, as the status says it. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from premoe_operator.api.resources import PreloadStatus
from premoe_operator.decide.pods import MESSAGE_MAX
from premoe_operator.decide.situation import Situation, worker_counts
from premoe_operator.kube.ports import WorkerPreload


def preload_status(situation: Situation, found: Sequence[WorkerPreload] | None) -> PreloadStatus | None:
    """``found`` None: nobody was asked now, so what was last said stays, as long as there are workers."""
    spec = situation.inputs.spec
    wanted = spec.patterns.preload
    if not wanted or spec.suspend or worker_counts(situation.deployment).wanted == 0:
        return None
    if found is None:
        return situation.status.preload
    answers = [worker for worker in found if worker.has_answered]
    done = [task for task in wanted if answers and all(task in worker.done for worker in answers)]
    # A worker that has not read the present list yet has nothing to say about it.
    told = [worker.problem for worker in found if not worker.has_answered or set(worker.wanted) == set(wanted)]
    return PreloadStatus(
        tasks=len(wanted),
        resident=len(done),
        workers=len(answers),
        message=max(told, default="")[:MESSAGE_MAX],
    )
