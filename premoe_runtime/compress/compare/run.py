"""Carrying a comparison out: the full model, retrieval, then one cell after the other, each kept as it ends."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from premoe_runtime.compress.compare.cells import (
    Cell,
    Cells,
    Comparison,
    Made,
    Measured,
    Refused,
    Row,
    Size,
    cell_key,
)
from premoe_runtime.compress.compare.entrants import Entrant, LeftOut
from premoe_runtime.compress.compare.making import Maker, Order, make_apart
from premoe_runtime.compress.compare.reference import FullModel, full_answers, settings_of
from premoe_runtime.compress.compare.retrieval import Rows, retrieval
from premoe_runtime.compress.method import Job
from premoe_runtime.compress.run import facts_of
from premoe_runtime.compress.share import Share
from premoe_runtime.compress.weights import PackWeights
from premoe_runtime.engines.hf.model import SlotModel
from premoe_runtime.formats.errors import CorruptData, InvalidInput, PremoeError
from premoe_runtime.offline.calibration import calibration_digest
from premoe_runtime.offline.evaluation.data import TaskData, check_tasks
from premoe_runtime.offline.evaluation.exam import Answers, Examiner
from premoe_runtime.offline.evaluation.journal import Journal, arithmetic_of
from premoe_runtime.offline.evaluation.lines import Lines
from premoe_runtime.offline.evaluation.outputs import Asked
from premoe_runtime.offline.profile.spool import open_spool
from premoe_runtime.packs.reader import PackReader, open_pack
from premoe_runtime.storage import open_store

Stage = Callable[[str, float], None]
"""Told what is being done, and the share of all the work that is done, 0 to 1."""
_RETRIEVAL = 4.0
"""About how many cells retrieval takes as long as, a seed."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What takes part, and how. ``keep``: a folder for the packs, which are removed once measured without it.

    ``load`` gives the model of a pack to measure, ``head`` one of which no block is read; ``make`` carries orders out.
    """

    entrants: Sequence[Entrant]
    shares: tuple[Share, ...]
    load: Callable[[PackReader], SlotModel]
    head: Callable[[PackReader], SlotModel]
    left_out: Sequence[LeftOut] = ()
    retrieval: bool = True
    device: str = "cpu"
    threads: int | None = None
    spool: Path | None = None
    keep: Path | None = None
    make: Maker = make_apart
    probe_bytes: int = 0


@dataclass(slots=True)
class _Work:
    """How much of it is done."""

    total: float
    stage: Stage
    done: float = 0.0

    def say(self, what: str, part: float = 0.0, of: float = 1.0) -> None:
        self.stage(what, min((self.done + part * of) / self.total, 1.0))


def compare(
    reader: PackReader,
    data: Mapping[str, TaskData],
    terms: Terms,
    *,
    state: Path,
    stage: Stage = lambda what, share: None,
    say: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Measure all that ``terms`` span; ``state`` keeps what was measured, so that a stopped run goes on behind it.

    A cell that cannot be measured says why, and the others go on. ``say`` is told of what is not used. Raises
    InvalidInput (data, shares, a pack that no method takes), CorruptData, Conflict while another process uses
    ``state``, and what a disk raises.
    """
    seeds, old = check_tasks(data), PackWeights(reader)
    if not terms.shares:
        raise InvalidInput("name at least one share of the bytes", reason="COMPARISON_EMPTY")
    state.mkdir(parents=True, exist_ok=True)
    tests = {task: one.test for task, one in data.items()}
    count = len(terms.entrants) * len(terms.shares) * seeds
    work = _Work(1 + (_RETRIEVAL * seeds if terms.retrieval else 0) + count, stage)
    head = terms.head(reader)
    settings = settings_of(old.manifest.model_id, arithmetic_of(head), tests)
    with open_spool(state / "full", settings, 0) as kept:
        journal = Journal(state / "answers.jsonl")
        model = terms.load(reader)
        full = full_answers(model, tests, journal, kept, spool=terms.spool, stage=work.say, say=say)
        work.done += 1
        rows: Rows = {}
        if terms.retrieval:
            rows |= _retrieval(model, old, data, terms, state, journal, work, say)
        del model  # two models are never in memory
        run = _Run(old, data, terms, state, FullModel(kept, head), work, say)
        for share in terms.shares:
            for entrant in terms.entrants:
                rows[entrant.name, share] = run.row(entrant, share)
    shutil.rmtree(state / "packs", ignore_errors=True)
    sources = {one.name: one.method.source for one in terms.entrants}
    return Comparison(old.manifest, seeds, terms.shares, full, rows, sources, terms.left_out, terms.probe_bytes)


def _retrieval(
    model: SlotModel,
    old: PackWeights,
    data: Mapping[str, TaskData],
    terms: Terms,
    state: Path,
    journal: Journal,
    work: _Work,
    say: Callable[[str], None],
) -> Rows:
    weight = _RETRIEVAL * len(next(iter(data.values())).calibration)
    rows = retrieval(
        model,
        old,
        data,
        terms.shares,
        store=open_store(str(state)),
        journal=journal,
        clock=Lines(state / "seconds.jsonl"),
        spool=terms.spool,
        stage=lambda what, part: work.say(what, part, weight),
        say=say,
    )
    work.done += weight
    return rows


@dataclass(slots=True)
class _Run:
    """The methods' cells."""

    old: PackWeights
    data: Mapping[str, TaskData]
    terms: Terms
    state: Path
    full: FullModel
    work: _Work
    say: Callable[[str], None]
    cells: Cells = field(init=False)

    def __post_init__(self) -> None:
        self.cells = Cells(self.state / "cells.jsonl")

    def row(self, entrant: Entrant, share: Share) -> Row:
        """Every seed, up to the first that cannot be measured."""
        found = []
        seeds = len(next(iter(self.data.values())).calibration)
        for seed in range(seeds):
            one = self.cell(Cell(entrant, share, seed))
            self.work.done += 1
            if isinstance(one, Refused):
                self.work.done += seeds - seed - 1
                return one
            found.append(one)
        return found

    def cell(self, cell: Cell) -> Measured | Refused:
        job = self._job(cell)
        tests = {task: calibration_digest(one.test) for task, one in self.data.items()}
        arithmetic = arithmetic_of(self.full.head)
        key = cell_key(facts_of(cell.entrant.method, job), self.old.manifest.model_id, tests, arithmetic)
        known = self.cells.get(key)
        if known is not None and (self.terms.keep is None or self._kept(known.made.model_id)):
            return known
        name = f"{cell.entrant.name} at {cell.share}, seed {cell.seed}"
        place = self.state / "packs" / key
        try:
            cell.entrant.method.check(job)
            made = self.terms.make(self._order(cell, job, place), _Told(self.work, name, self.say))
            if isinstance(made, Refused):
                return made
            if (over := self._over(made, cell.share)) is not None:
                return over
            answers = self._answers(f"{self._store(place)}/models/{made.model_id}", name)
        except (InvalidInput, CorruptData) as error:
            return Refused(str(error))
        finally:
            shutil.rmtree(place, ignore_errors=True)
        measured = Measured(made, answers)
        self.cells.put(key, measured)
        return measured

    def _job(self, cell: Cell) -> Job:
        texts = {task: one.calibration[cell.seed] for task, one in self.data.items()}
        device, threads = self.terms.device, self.terms.threads
        return Job(self.old, texts, cell.share, cell.entrant.settings, Path(), cell.seed, device, threads)

    def _order(self, cell: Cell, job: Job, place: Path) -> Order:
        work = place / "work"
        work.mkdir(parents=True, exist_ok=True)
        return Order.of(cell.entrant, replace(job, work=work), self._store(place))

    def _store(self, place: Path) -> str:
        return str(self.terms.keep or place / "store")

    def _kept(self, model_id: str) -> bool:
        assert self.terms.keep is not None
        with suppress(PremoeError):
            return open_pack(f"{self.terms.keep}/models/{model_id}").manifest().model_id == model_id
        return False

    def _over(self, made: Made, share: Share) -> Refused | None:
        """A pack that is larger than was asked compares with nothing."""
        whole = Size.of(self.old.manifest).num_bytes
        if made.size.num_bytes <= share.part * whole * (1 + 1e-9):
            return None
        taken = Share(made.size.num_bytes / whole)
        return Refused(f"it takes {taken} of the experts' bytes, more than {share}")

    def _answers(self, url: str, name: str) -> dict[str, Answers]:
        model = self.terms.load(open_pack(url))
        tests = {task: one.test for task, one in self.data.items()}
        examiner = Examiner(model, tests, spool=self.terms.spool, reference=self.full)
        asked = [Asked(task, None, model.manifest.top_k, f"{task}, {name}") for task in tests]
        return dict(zip(tests, examiner.answers(asked, stage=self.work.say), strict=True))


@dataclass(slots=True)
class _Told:
    """A method's report as a part of all the work."""

    work: _Work
    name: str
    say: Callable[[str], None]
    what: str = ""
    total: float = 1.0
    done: float = 0.0

    def stage(self, what: str, total: float) -> None:
        self.what, self.total, self.done = what, max(total, 1e-9), 0.0
        self.advance(0)

    def advance(self, amount: float) -> None:
        self.done += amount
        self.work.say(f"{self.name}: {self.what} {100 * min(self.done / self.total, 1):.0f} %")

    def note(self, text: str) -> None:
        self.say(f"{self.name}: {text}")
