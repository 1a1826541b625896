"""Our retrieval at the bytes of compressed packs: each task's specialist in the slots of one worker for all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from premoe_runtime.compress.compare.cells import RECOGNISED, RIGHT, Made, Measured, Refused, Row, Size
from premoe_runtime.compress.config import width_of
from premoe_runtime.compress.share import Share
from premoe_runtime.compress.weights import PackWeights
from premoe_runtime.engines.hf.model import SlotModel
from premoe_runtime.formats.arrays import Mask
from premoe_runtime.formats.budget import DEFAULT_SPARE_SLOTS, Budget
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.formats.pattern import GENERALIST_TASK
from premoe_runtime.offline.calibration import Example, calibration_digest
from premoe_runtime.offline.evaluation.data import TaskData
from premoe_runtime.offline.evaluation.exam import Answers
from premoe_runtime.offline.evaluation.journal import Journal
from premoe_runtime.offline.evaluation.known import Known
from premoe_runtime.offline.evaluation.lines import Lines
from premoe_runtime.offline.evaluation.outputs import Asked
from premoe_runtime.offline.evaluation.plan import SERVED, Decisions
from premoe_runtime.offline.evaluation.rules import Patterns
from premoe_runtime.offline.evaluation.sweep import Profiler, decided
from premoe_runtime.offline.evaluation.tables import picked
from premoe_runtime.offline.profile.record import Profile
from premoe_runtime.storage import Store

Rows = dict[tuple[str, Share], Row]


@dataclass(frozen=True, slots=True)
class Worker:
    """What a worker keeps of a layer on average, and its spare slots beside that: together a share of the experts."""

    budget: Budget
    spare: int

    @classmethod
    def at(cls, share: Share, manifest: Manifest) -> Worker:
        """Raises InvalidInput (SHARE_TOO_SMALL): fewer slots than a token uses experts."""
        slots, top_k, experts = share.of(manifest.num_experts), manifest.top_k, manifest.num_experts
        if slots < top_k:
            raise InvalidInput(
                f"{share} of {experts} experts a layer are {slots} slots, but every token uses {top_k}; give a larger "
                "share",
                reason="SHARE_TOO_SMALL",
            )
        spare = 0 if slots == experts else min(DEFAULT_SPARE_SLOTS, slots - top_k)
        return cls(Budget(top_k, slots - spare), spare)


def retrieval(
    model: SlotModel,
    old: PackWeights,
    data: Mapping[str, TaskData],
    shares: Sequence[Share],
    *,
    store: Store,
    journal: Journal,
    clock: Lines,
    spool: Path | None,
    stage: Callable[[str, float], None],
    say: Callable[[str], None],
) -> Rows:
    """Both rows at every share; ``store`` keeps the profiles, ``clock`` what each took. ``model`` and ``spool`` are an
    ``Examiner``'s.

    What cannot be measured is a row that says why. Raises CorruptData for answers that are not finite.
    """
    workers = {share: _worker(share, old.manifest) for share in shares}
    try:
        built = _built(old, data, Profiler(model, store, spool, (SERVED,), stage, say), clock)
    except InvalidInput as error:
        return {(name, share): Refused(str(error)) for share in shares for name in (RIGHT, RECOGNISED)}
    known = Known(model, {task: one.test for task, one in data.items()}, journal, spool=spool, passed_over=say)
    served = {share: _Served(worker, built) for share, worker in workers.items() if isinstance(worker, Worker)}
    answers = _answers(known, tuple(data), built, served, lambda what, done: stage(what, 0.5 + done / 2))
    rows: Rows = {}
    for share, worker in workers.items():
        for name in (RIGHT, RECOGNISED):
            if isinstance(worker, Refused):
                rows[name, share] = worker
                continue
            seeds = range(len(built.rules))
            rows[name, share] = [
                Measured(
                    Made("", _size(old, served[share].slots(seed)), built.seconds[seed]),
                    {task: _of(answers, name, share, seed, task, built.decisions) for task in data},
                )
                for seed in seeds
            ]
    return rows


@dataclass(frozen=True, slots=True)
class _Built:
    """Of every seed's text: patterns, what they took, and what a set of them takes the test prompts for."""

    rules: Sequence[Patterns]
    seconds: Sequence[float]
    decisions: Decisions


@dataclass(frozen=True, slots=True)
class _Served:
    """Patterns within the slots of one worker."""

    worker: Worker
    built: _Built

    def slots(self, seed: int) -> tuple[int, ...]:
        found = replace(self.built.rules[seed], spare=self.worker.spare).slots(self.worker.budget)
        assert found is not None, "they share the layers"
        return found

    def kept(self, seed: int, owner: str) -> Mask:
        rule = self.built.rules[seed]
        pattern = rule.generalist if owner == GENERALIST_TASK else rule.specialists[owner]
        assert pattern is not None, "rules made from profiles have a generalist"
        return pattern.kept(self.worker.budget, self.slots(seed))


def _built(old: PackWeights, data: Mapping[str, TaskData], measure: Profiler, clock: Lines) -> _Built:
    """Raises InvalidInput: a family or data of which no patterns can be built."""
    seeds = len(next(iter(data.values())).calibration)
    by_seed, seconds, total = [], [], len(data) * (seeds + 1) * 4.0
    for seed in range(seeds):
        texts = {task: one.calibration[seed] for task, one in data.items()}
        timed = [_timed(clock, old, text, partial(measure, task, text, total)) for task, text in texts.items()]
        by_seed.append([profile for profile, _ in timed])
        seconds.append(sum(took for _, took in timed))
    asked = {task: measure(task, one.test, total, scores=("counts",)).signatures for task, one in data.items()}
    rules = [Patterns.by_rule(profiles, SERVED, "shared", seed=seed) for seed, profiles in enumerate(by_seed)]
    return _Built(rules, seconds, decided(by_seed, asked))


def _timed(
    clock: Lines, old: PackWeights, text: Sequence[Example], measure: Callable[[], Profile]
) -> tuple[Profile, float]:
    """The profile, and the seconds that it took when it was measured."""
    key, started = f"{old.manifest.model_id} {calibration_digest(text)}", time.monotonic()
    profile = measure()
    if key not in clock.found:
        clock.put(key, {"seconds": time.monotonic() - started})
    return profile, float(clock.found[key]["seconds"])


Found = dict[tuple[Share, int, str, str], Answers]
"""By share, seed, task and whose experts are kept."""


def _answers(
    known: Known,
    tasks: Sequence[str],
    built: _Built,
    served: Mapping[Share, _Served],
    stage: Callable[[str, float], None],
) -> Found:
    asked = {
        (share, seed, task, owner): Asked(
            task, at.kept(seed, owner), at.worker.budget.active, f"{task} at {share}, retrieval"
        )
        for task in tasks  # task by task, which is what is known best
        for share, at in served.items()
        for seed in range(len(built.rules))
        for owner in sorted({task, *built.decisions[seed, task]})
    }
    return dict(zip(asked, known.answers(tuple(asked.values()), stage), strict=True))


def _of(answers: Found, name: str, share: Share, seed: int, task: str, decisions: Decisions) -> Answers:
    """Under the task's own experts, or every prompt under those that recognition gives it."""
    if name == RIGHT:
        return answers[share, seed, task, task]
    return picked([answers[share, seed, task, owner] for owner in decisions[seed, task]])


def _worker(share: Share, manifest: Manifest) -> Worker | Refused:
    try:
        return Worker.at(share, manifest)
    except InvalidInput as error:
        return Refused(str(error))


def _size(old: PackWeights, slots: Sequence[int]) -> Size:
    each = Size.of(old.manifest).num_bytes // old.manifest.num_blobs
    return Size(sum(slots) * each, tuple(slots), width_of(old.model))
