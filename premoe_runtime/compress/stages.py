"""Packs that a method goes through one after the other, each made of the last by a cut or a training."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from premoe_runtime.compress.method import Job
from premoe_runtime.compress.objectives import Objective
from premoe_runtime.compress.result import Compressed, write
from premoe_runtime.compress.student import Part, Student
from premoe_runtime.compress.trained import keep, kept
from premoe_runtime.compress.trainer import Training, samples_of, train
from premoe_runtime.compress.weights import PackWeights
from premoe_runtime.engines.hf.experts import FLOATS
from premoe_runtime.packs.progress import Silent
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.storage import open_store

Step = Callable[[Job], Compressed]
"""Makes a smaller or better model of the job's pack, which is the last step's; ``work`` is a folder of its own."""


def through(job: Job, steps: list[Step]) -> Compressed:
    """The model behind the last step, to be written over ``job.old``.

    Every step but the last leaves a pack in the work folder, of which a killed run goes on; older ones are removed, so
    that two lie there at most.
    """
    old, first = job.old, 0
    for number in range(len(steps) - 1, 0, -1):
        if (found := _pack(_folder(job, number - 1) / "pack")) is not None:
            old, first = found, number
            break
    for number, step in enumerate(steps[first:], start=first):
        folder = _folder(job, number)
        new = step(replace(job, old=old, work=folder))
        if number == len(steps) - 1:
            return new if old is job.old else over(new, old, job.old)
        write(old, new, {"method": "stage"}, open_store(str(folder / "pack")), Silent())
        following = _pack(folder / "pack")
        assert following is not None, "it was written"
        old = following
        if number:
            shutil.rmtree(_folder(job, number - 1), ignore_errors=True)
        for left in folder.iterdir():
            if left.name != "pack":
                shutil.rmtree(left)
    raise AssertionError("a method has steps")


def over(new: Compressed, old: PackWeights, base: PackWeights) -> Compressed:
    """A model made of ``old``, which is made of ``base``, as one to be written over ``base``: all tensors are old's."""
    others = {
        name: partial(old.tensor, name)
        for name, one in old.tensors.items()
        if one.dtype in FLOATS and name not in old.routers
    }
    return replace(new, tensors={**others, **new.tensors})


def tuned(
    job: Job,
    training: Training,
    parts: tuple[Part, ...],
    objective: Callable[[], Objective],
    *,
    rank: int = 0,
    purpose: str = "",
) -> Compressed:
    """The job's pack after a training; ``objective`` is made when it is wanted, for ``purpose`` see ``train``."""
    folder = job.work / "kept"
    if not folder.is_dir():
        student = Student(job.old, parts, rank=rank, seed=job.seed, device=job.device, threads=job.threads)
        samples, checkpoints = samples_of(job, student), job.work / "training"
        train(student, samples, objective(), training, checkpoints, purpose=purpose, report=job.report)
        keep(student, folder)
        shutil.rmtree(checkpoints, ignore_errors=True)
    return kept(folder, job.old)


def _folder(job: Job, number: int) -> Path:
    return job.work / f"step-{number:03d}"


def _pack(folder: Path) -> PackWeights | None:
    """The finished pack of a step."""
    found = sorted((folder / "models").iterdir()) if (folder / "models").is_dir() else []
    return PackWeights(open_pack(str(found[0]))) if found else None
