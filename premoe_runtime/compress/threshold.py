"""How far a model can be compressed before its loss on held-out examples rises: factors tried one after the other."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from premoe_runtime.compress.method import Job
from premoe_runtime.compress.result import Compressed, write
from premoe_runtime.compress.share import Share
from premoe_runtime.formats.arrays import F64, I64
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.offline.calibration import Example
from premoe_runtime.offline.evaluation.exam import Examiner
from premoe_runtime.offline.evaluation.outputs import Asked
from premoe_runtime.offline.evaluation.statistics import Ratio, estimate
from premoe_runtime.offline.profile.measure import load_blocks
from premoe_runtime.packs.progress import Silent
from premoe_runtime.packs.reader import PackReader, open_pack
from premoe_runtime.storage import open_store

HELD = 4
"""Every fourth example judges, and teaches nothing."""
Losses = Mapping[str, tuple[F64, I64]]
"""By task: nats f64[N] of each example's answer, and its tokens i64[N]."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One factor. ``loss``: nats per answer token, mean over tasks; ``rise``: over the old model's.

    ``low`` to ``high``: the 95 % interval of the rise. ``held``: whether the whole interval lies within the margin.
    """

    factor: int
    loss: float
    rise: float
    low: float
    high: float
    held: bool


def parted(job: Job) -> tuple[Job, Job]:
    """The job with the examples that teach, and with those that judge. Raises InvalidInput (DATA_TOO_SMALL)."""
    for task, examples in job.data.items():
        if len(examples) < 2 * HELD:
            raise InvalidInput(
                f"task {task} has {len(examples)} examples, and a factor is judged by every {HELD}th: give at least "
                f"{2 * HELD}",
                reason="DATA_TOO_SMALL",
            )
    teach = {task: [one for at, one in enumerate(all_) if (at + 1) % HELD] for task, all_ in job.data.items()}
    judge = {task: all_[HELD - 1 :: HELD] for task, all_ in job.data.items()}
    return replace(job, data=teach), replace(job, data=judge)


def tried(job: Job, make: Callable[[Share], Compressed], factors: Sequence[int], margin: float) -> Iterator[Tried]:
    """Factors until the first whose loss leaves the margin (nats per token); ``job.data`` judges.

    Every candidate is written as a pack into the work folder and removed again, so its size on disk is needed once.
    """
    job.report.stage("trying factors", len(factors) + 1)
    old = _losses(job, job.old.reader)
    job.report.advance(1)
    for factor in factors:
        folder = job.work / f"factor-{factor}"
        pack = write(job.old, make(Share(1 / factor)), {"method": "trial"}, open_store(str(folder)), Silent())
        new = _losses(job, open_pack(pack.url))
        shutil.rmtree(folder, ignore_errors=True)
        job.report.advance(1)
        found = judged(factor, old, new, margin)
        yield found
        if not found.held:
            return


def judged(factor: int, old: Losses, new: Losses, margin: float) -> Tried:
    """Whether the losses of the same examples under a smaller model have risen by no more than the margin."""
    before, after = ([_ratio(*one) for one in losses.values()] for losses in (old, new))
    rise = estimate(after, before)
    return Tried(factor, estimate(after).value, rise.value, rise.low, rise.high, rise.high <= margin)


def _ratio(nats: F64, tokens: I64) -> Ratio:
    return Ratio(nats[None, None], tokens[None, None].astype(np.float64))


def _losses(job: Job, reader: PackReader) -> Losses:
    data: Mapping[str, Sequence[Example]] = job.data
    spool: Path = job.work / "exam"
    model = load_blocks(reader, threads=job.threads, device=job.device)
    examiner = Examiner(model, data, spool=spool, passed_over=job.report.note)
    asked = [Asked(task, None, model.manifest.top_k) for task in data]
    return {one.task: (found.nll, found.tokens) for one, found in zip(asked, examiner.answers(asked), strict=True)}
