"""Offline half of the demo: pack the checkpoint, profile the stored tasks, publish a live pattern set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from premoe_local import tasks
from premoe_local.demo.calibration import calibration
from premoe_runtime.engines.hf.model import SlotModel
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.errors import NotFound
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.formats.pattern import Pattern
from premoe_runtime.offline.evaluation.rules import random_pattern
from premoe_runtime.offline.evaluation.variants import Run, evaluate
from premoe_runtime.offline.patterns.build import BuildOptions, build_set
from premoe_runtime.offline.patterns.library import publish
from premoe_runtime.offline.profile.measure import load_full_model, measure_profile
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.storage import open_store

CALIBRATION_PROMPTS = 256
"""A task: 128 become exemplars, 128 set the cutoff."""

Step = Callable[[str, float], None]
"""Told what is being done, and the share that is done, 0 to 1."""


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """What the comparison needs. ``model`` holds every expert, in this process."""

    model: SlotModel
    generalist: Pattern


def pack_fixture(fixture: Path, store_url: str) -> Manifest:
    """Pack the checkpoint into an empty store. Raises what packing raises."""
    write_pack(open_source(str(fixture)), open_store(store_url))
    return open_pack(store_url).manifest()


def prepare(store_url: str, step: Step) -> Prepared:
    """Profile the stored tasks and publish a live set. Raises what profiling raises."""
    store, pack = open_store(store_url), open_pack(store_url)
    model = load_full_model(pack, dtype="float32")
    profiles = []
    for number, task in enumerate(tasks.STORED):
        step(f"profiling {task}", number / len(tasks.STORED))
        examples = calibration(tasks.examples(task, "calibration", CALIBRATION_PROMPTS))
        profiles.append(measure_profile(model, examples, task=task, where=f"task {task}"))
    built = build_set(profiles, BuildOptions(metric="impact"))
    publish(store, built, live=True)
    generalist = next((pattern for pattern in built.patterns if pattern.kind == "generalist"), None)
    if generalist is None:
        raise NotFound("the pattern set has no generalist", reason="PATTERN_NOT_FOUND")
    return Prepared(model, generalist)


def compare(
    prepared: Prepared, prompts: Mapping[str, Sequence[tasks.Example]], budget: Budget, step: Step
) -> dict[str, float]:
    """Accuracy of full, generalist and random experts on the served prompts, all tasks pooled.

    One teacher-forced forward per prompt, in this process, over the same weights: an answer counts as right when
    every one of its tokens, the end included, is the model's first choice, which is when greedy decoding writes it.
    A static set needs no spare slots, so ``generalist`` and ``random`` (drawn once) get them too: ``budget`` is that
    of equal bytes.
    """
    data = {task: calibration(examples) for task, examples in prompts.items()}
    variants = {"full": (None, None), "generalist": (budget, prepared.generalist)}
    variants["random"] = (budget, random_pattern(prepared.generalist))
    runs = [Run(task, name, *setting) for name, setting in variants.items() for task in data]  # type: ignore[arg-type]
    correct = dict.fromkeys(variants, 0)
    for number, outcome in enumerate(evaluate(prepared.model, data, runs)):
        step("comparing with the full model", number / len(runs))
        correct[outcome.run.variant] += outcome.correct
    total = sum(len(examples) for examples in data.values())
    return {name: count / total for name, count in correct.items()}
