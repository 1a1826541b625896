"""One run of a method: checked, planned, written."""

from __future__ import annotations

import dataclasses

from premoe_runtime.compress.method import Job, Method
from premoe_runtime.compress.result import Compressed, write
from premoe_runtime.offline.export.cut import rescaling
from premoe_runtime.packs.progress import Progress, Silent
from premoe_runtime.packs.writer import PackResult
from premoe_runtime.storage import Store


def plan(method: Method, job: Job) -> Compressed:
    """What the method makes of the pack. Raises InvalidInput (``Method.check``), and what the method raises.

    Where a router of fewer rows weighs experts otherwise than the whole one, ``job.report`` is told.
    """
    method.check(job)
    new = method.compress(job)
    if new.experts != job.old.manifest.layer_experts and (why := rescaling(job.old.model.router)):
        job.report.note(f"{why}; `premoe compress compare` says what that costs")
    return new


def facts_of(method: Method, job: Job) -> dict[str, object]:
    """What a pack's provenance says of the run: the same facts make the same pack."""
    return {
        "method": method.name,
        "source": method.source,
        "settings": dataclasses.asdict(job.settings),
        "share": job.share.part,
        "seed": job.seed,
        "data": job.data_digests,
    }


def run(method: Method, job: Job, store: Store, progress: Progress | None = None) -> PackResult:
    """Plan and write; the pack's id is that of its content. Raises what ``plan`` and ``write`` raise."""
    return write(job.old, plan(method, job), facts_of(method, job), store, progress or Silent())
