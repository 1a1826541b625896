"""Light-PEFT on a pruned set of experts: adapters are tuned, and the first steps say which experts and adapters go.

Training starts from more experts than the budget, by a pattern or a score. After its first steps the least important
experts go, down to the budget, and the least important adapters; then it goes on. Written are the adapter, in PEFT's
files beside the pattern, and the pack of the set with the adapter merged in. The paper prunes dense models; experts
take the place of its heads and feed-forward neurons. Its share of adapters, 25 %, is the default; all else is ours.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from premoe_runtime.compress.adapters import Adapter, LowRankPair, put_adapter
from premoe_runtime.compress.config import width_of
from premoe_runtime.compress.counts import kept_a_layer, refuse_groups
from premoe_runtime.compress.early import Kept, Tally, best
from premoe_runtime.compress.method import Job, Method, setting
from premoe_runtime.compress.methods.select import pooled
from premoe_runtime.compress.objectives import answers_loss
from premoe_runtime.compress.plan import selection
from premoe_runtime.compress.result import Compressed, planned, write
from premoe_runtime.compress.student import Part, Student
from premoe_runtime.compress.trained import keep, kept
from premoe_runtime.compress.trainer import Training, samples_of, train
from premoe_runtime.compress.weights import PackWeights
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.pattern import Pattern
from premoe_runtime.offline.export.cut import kept_by
from premoe_runtime.offline.patterns.library import find_pattern, store_of
from premoe_runtime.packs.progress import Silent
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.storage import open_store

Ranking = list[list[int]]
"""Experts of every layer, the best first."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Whose experts, which adapters, how long, and what goes early."""

    pattern: str = setting(
        "", "Task or id of the pattern whose experts these are, or its file; without, --score ranks."
    )
    set: str = setting("", "Pattern set, by id or the start of it; without, the live one.")
    score: str = setting("impact", "Score that ranks experts without a pattern (`premoe scores`).")
    on: Literal["attention", "all"] = setting(
        "attention", "Adapters on attention, which vLLM loads, or on experts too."
    )
    rank: int = setting(8, "Rank of adapters.")
    alpha: float = setting(16.0, "Their scale times the rank.")
    steps: int = setting(200, "Steps of training, the early ones included.")
    early: int = setting(40, "Steps after which experts and adapters go.")
    drop_experts: float = setting(0.25, "Part of the first set's experts that go: it has so many more than --budget.")
    drop_adapters: float = setting(0.25, "Part of the adapters that go.")
    rate: float = setting(1e-3, "Highest learning rate.")
    tokens: int = setting(4096, "Tokens of one step.")
    adapter: str = setting("", "Folder or URL of the adapter's store; without, the one that the pack lies in.")


def compress(job: Job) -> Compressed:
    """The pack of the final set with the adapter merged in; the adapter is written on the way."""
    settings: Settings = job.settings
    _check(settings)
    refuse_groups(job, "the experts that early steps choose do")
    pattern = _pattern(job)
    counts = [kept_a_layer(job, count) for count in job.old.manifest.layer_experts]
    ranking = _ranked(job, pattern)
    first = [row[: _first(count, len(row), settings)] for row, count in zip(ranking, counts, strict=True)]
    early, student = _early(job, [sorted(row) for row in first], counts)
    final = [[sorted(row)[place] for place in places] for row, places in zip(first, early.experts, strict=True)]
    after = _goes_on(job, student, early, final)
    del student
    adapter = _adapter(job, after, pattern, final)
    place = settings.adapter or job.beside
    store = open_store(place) if place else store_of(job.old.reader.url)
    folder = put_adapter(store, pattern.pattern_id if pattern else settings.score, adapter.files(job.old.model))
    job.report.note(f"adapter: {store.at(folder)}")
    shutil.rmtree(job.work / "merged", ignore_errors=True)
    keep(after, job.work / "merged")
    merged = kept(job.work / "merged", after.old)
    # Where pattern and adapter lie is this machine's, and the pack does not depend on it.
    places = {"pattern", "set", "adapter"}
    told = {name: value for name, value in asdict(settings).items() if name not in places}
    facts = {"settings": told, "adapter": folder, "pattern_id": adapter.facts["pattern_id"], "kept": final}
    return replace(merged, facts=facts)


def _check(settings: Settings) -> None:
    wrong = ""
    if settings.rank < 1 or not settings.alpha > 0:
        wrong = f"--rank {settings.rank} --alpha {settings.alpha:g}: give 1 or more, and more than 0"
    elif not 1 <= settings.early < settings.steps:
        wrong = f"--early {settings.early}: give 1 step at least and fewer than --steps, {settings.steps}"
    elif not (0 <= settings.drop_experts < 1 and 0 <= settings.drop_adapters < 1):
        wrong = "--drop-experts and --drop-adapters: give 0 or more and less than 1"
    if wrong:
        raise InvalidInput(f"light-peft: {wrong}", reason="SETTING_INVALID")


def _first(count: int, there: int, settings: Settings) -> int:
    """Experts of a layer that training starts with, ``count`` of which are to stay."""
    return min(there, round(count / (1 - settings.drop_experts)))


def _pattern(job: Job) -> Pattern | None:
    settings: Settings = job.settings
    if not settings.pattern:
        return None
    path = Path(settings.pattern)
    if path.is_file():
        return Pattern.from_bytes(path.read_bytes(), where=settings.pattern)
    return find_pattern(store_of(job.old.reader.url), settings.pattern, settings.set or None)


def _ranked(job: Job, pattern: Pattern | None) -> Ranking:
    """Experts of every layer by the pattern, or by the score on the data. Raises InvalidInput (WEIGHTS_MISMATCH)."""
    manifest = job.old.manifest
    if pattern is None:
        values = pooled(job, job.settings.score)
        order = np.argsort(-values, axis=1, kind="stable")
        return [row[:count].tolist() for row, count in zip(order, manifest.layer_experts, strict=True)]
    kept_by(pattern, Budget(manifest.top_k, min(manifest.layer_experts)), "uniform", manifest)  # of these weights
    return [row[:count].tolist() for row, count in zip(pattern.ranking, manifest.layer_experts, strict=True)]


def _student(job: Job, experts: Sequence[Sequence[int]]) -> Student:
    """The pruned set as a pack in the work folder, whole, with adapters that learn nothing yet."""
    settings: Settings = job.settings
    plan = selection(experts, width_of(job.old.model))
    store = open_store(str(job.work / "pruned"))
    written = write(job.old, planned(plan, job.old, {}), {"method": "light-peft"}, store, Silent())
    parts: tuple[Part, ...] = ("rest",) if settings.on == "attention" else ("rest", "experts")
    student = Student(
        PackWeights(open_pack(written.url)),
        parts,
        rank=settings.rank,
        alpha=settings.alpha,
        seed=job.seed,
        device=job.device,
        threads=job.threads,
    )
    student.drop([name for name in student.names if not _adapted(name)])
    if not student.trained:
        raise InvalidInput(
            f"light-peft: no matrix of {job.old.manifest.family}'s attention is found by its name; give --on all",
            reason="ADAPTERS_UNSUPPORTED",
        )
    return student


def _adapted(name: str) -> bool:
    """Attention's matrices, and experts'."""
    return name.startswith("experts.") or ("attn" in name and not name.endswith("norm.weight"))


def _early(job: Job, first: Sequence[Sequence[int]], counts: Sequence[int]) -> tuple[Kept, Student]:
    """The first steps, and what stays after them."""
    settings: Settings = job.settings
    folder, mark = job.work / "early", job.work / "early.json"
    if not mark.is_file():
        shutil.rmtree(folder, ignore_errors=True)  # a checkpoint without what its steps said
    student = _student(job, first)
    tally = Tally(student, answers_loss)
    training = Training(
        settings.early, settings.rate, settings.tokens, decay="linear", every=settings.early, seed=job.seed
    )
    samples = samples_of(job, student)
    train(student, samples, tally, training, folder, purpose=repr((settings, first)), report=job.report)
    if not mark.is_file():
        best(tally.experts, counts, tally.adapters, settings.drop_adapters).save(mark)
    return Kept.load(mark), student


def _goes_on(job: Job, before: Student, early: Kept, final: Sequence[Sequence[int]]) -> Student:
    """A student of the experts that stay, whose adapters start as they were, trained for the steps that are left."""
    settings: Settings = job.settings
    student = _student(job, final)
    student.drop([name for name in dict.fromkeys(_modules(student)) if name not in early.adapters])
    for name in student.trained:
        source, target = before.trained[name].data, student.trained[name].data
        if not name.startswith("experts."):
            target.copy_(source)
            continue
        layer = int(name.split(".")[1])
        there = before.slots.store.lut[layer][list(early.experts[layer])]
        target[student.slots.store.lut[layer][: len(final[layer])]] = source[there]
    training = Training(settings.steps - settings.early, settings.rate, settings.tokens, seed=job.seed + 1)
    samples = samples_of(job, student)
    purpose = repr((settings, early))
    train(student, samples, answers_loss, training, job.work / "after", purpose=purpose, report=job.report)
    return student


def _modules(student: Student) -> list[str]:
    return [name.removesuffix(".b") for name in student.trained if name.endswith(".b")]


def _adapter(job: Job, student: Student, pattern: Pattern | None, final: Sequence[Sequence[int]]) -> Adapter:
    settings, manifest = job.settings, job.old.manifest
    pairs = dict[str, LowRankPair]()
    for name in _modules(student):
        a, b = (student.trained[f"{name}.{one}"].detach() for one in "ab")
        if name.startswith("experts."):
            layer = int(name.split(".")[1])
            slots = student.slots.store.lut[layer][: len(final[layer])]
            a, b = a[slots], b[slots]
        pairs[name] = LowRankPair(a, b)
    facts = {
        "method": "light-peft",
        "model_id": manifest.model_id,
        "weights_id": manifest.weights_id,
        "origin": manifest.origin.url,
        "pattern_id": pattern.pattern_id if pattern else None,
        "task": pattern.task if pattern else sorted(job.data),
        "data": job.data_digests,
        "seed": job.seed,
    }
    return Adapter(pairs, settings.rank, settings.alpha, final, facts)


METHOD = Method(
    name="light-peft",
    title="adapters tuned on a pruned set, experts and adapters dropped early; the set's pack with them merged in",
    source="Light-PEFT, arXiv 2406.03792",
    changes=("count", "router", "weights", "skeleton"),
    needs=("answers", "training"),
    cost="steps of training, two pruned models in memory: 4 to 8 bytes a weight each; both packs in the work folder",
    loads="hf, vLLM; the adapter in PEFT and vLLM, over the set's checkpoint",
    settings=Settings,
    compress=compress,
)
