"""A run of `premoe profile`: every task that was not measured so before, with one load of the model for all."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from premoe_local.console import Progress, note, progress
from premoe_local.full_model import model_to_measure
from premoe_runtime.offline.calibration import Answers, Example, PassedOver
from premoe_runtime.offline.profile.scores import refuse_family

if TYPE_CHECKING:
    from premoe_runtime.engines.hf.model import SlotModel
    from premoe_runtime.offline.profile.record import Profile
    from premoe_runtime.offline.profile.unfinished import Unfinished
    from premoe_runtime.storage import Store


@dataclass(frozen=True, slots=True)
class Job:
    """One task: where its text lies, and what of it is used."""

    task: str
    data: Path
    examples: list[Example]


@dataclass(frozen=True, slots=True)
class Done:
    """One task's stored profile. ``seconds`` is None where it had been there already."""

    profile_id: str
    profile: Profile
    seconds: float | None


@dataclass(frozen=True, slots=True)
class How:
    """How prompts are run."""

    answers: Answers
    scores: tuple[str, ...]
    threads: int | None
    device: str
    dtype: str
    memory: int | None
    """Bytes that the model may take; None: what is free."""
    spool: Path | None


def profiles(model: str, to: str | None, jobs: Sequence[Job], how: How, unused: PassedOver) -> tuple[list[Done], Store]:
    """Measure what is not in the store yet, each task stored before the next begins."""
    # Torch is slow to import, so faults in the files are reported first.
    from premoe_runtime.offline.patterns.library import store_of
    from premoe_runtime.offline.patterns.measurements import Measurement, ensure_profile, find_profile, variant_of
    from premoe_runtime.offline.profile.record import Profile
    from premoe_runtime.offline.profile.unfinished import Unfinished
    from premoe_runtime.packs.reader import open_pack

    store, reader = store_of(model, to), open_pack(model)
    weights_id = reader.manifest().weights_id
    refuse_family(how.scores, reader.manifest().family)
    variant = variant_of(how.scores, how.dtype)
    wanted = [Measurement.of(weights_id, job.task, how.answers, job.examples, variant) for job in jobs]
    found = {one.task: find_profile(store, one) for one in wanted}
    missing = [job for job in jobs if found[job.task] is None]
    slot_model = (
        model_to_measure(
            reader,
            memory=how.memory,
            threads=how.threads,
            device=how.device,
            dtype=how.dtype,
            purpose="profiled",
            scores=how.scores,
        )
        if missing
        else None
    )
    done = []
    with progress("profiling", total=sum(len(job.examples) for job in missing)) as bar:
        for one, job in zip(wanted, jobs, strict=True):
            started, profile_id = time.perf_counter(), found[job.task]
            if profile_id is None:
                assert slot_model is not None, "a profile is missing"
                unfinished = Unfinished(store, weights_id, job.task, lambda text: note(f"note: {text}"))
                profile_id = ensure_profile(
                    store, one, partial(_measure, slot_model, job, how, bar, unused, unfinished)
                )
                unfinished.clear()
            seconds = time.perf_counter() - started if job in missing else None
            done.append(Done(profile_id, Profile.load(store.get, profile_id), seconds))
    return done, store


def _measure(
    slot_model: SlotModel, job: Job, how: How, bar: Progress, unused: PassedOver, unfinished: Unfinished
) -> Profile:
    from premoe_runtime.offline.profile.measure import measure_profile

    bar.update(description=f"profiling {job.task}")
    return measure_profile(
        slot_model,
        job.examples,
        task=job.task,
        answers=how.answers,
        where=str(job.data),
        scores=how.scores,
        unfinished=unfinished,
        spool=how.spool,
        advance=bar.advance,
        stage=lambda what: bar.update(description=f"profiling {job.task}, {what}"),
        passed_over=unused,
    )
