"""What the Jobs do, from values to the words that they end with."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from premoe_runtime.formats.errors import NotFound
from premoe_runtime.formats.ids import DIGEST_PREFIX, bare_digest
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.formats.pattern import Metric
from premoe_runtime.offline.calibration import Answers
from premoe_runtime.offline.patterns.build import BuildOptions, build_set
from premoe_runtime.offline.patterns.library import live_set_id, publish
from premoe_runtime.offline.patterns.measurements import (
    Measurement,
    ensure_profile,
    find_profile,
    load_profile,
    variant_of,
)
from premoe_runtime.offline.profile.record import Profile
from premoe_runtime.offline.profile.scores import measured_for, refuse_family
from premoe_runtime.packs.ensure import ensure_pack
from premoe_runtime.packs.place import pack_folder
from premoe_runtime.packs.reader import PackReader
from premoe_runtime.storage import Store, open_store
from premoe_worker.jobs.measuring import Machine, Measurer
from premoe_worker.jobs.progress import Lines
from premoe_worker.jobs.tasks import Task

Words = dict[str, object]


def pack(source: str, store_url: str, *, revision: str, expect: str) -> Words:
    """Ensure the pack of a checkpoint."""
    store = open_store(store_url)
    manifest = ensure_pack(source, store, revision=revision, expect=expect, progress=Lines("packing"))
    return {"modelId": DIGEST_PREFIX + manifest.model_id}


def profile(
    store_url: str,
    model_id: str,
    tasks: Sequence[Task],
    answers: Answers,
    scores: tuple[Metric, ...],
    machine: Machine,
) -> Words:
    """Ensure the profiles of tasks. Scores and all calibration data are checked before the model is loaded."""
    store = open_store(store_url)
    reader = _reader(store, model_id)
    manifest, variant = reader.manifest(), variant_of(scores)
    refuse_family(scores, manifest.family)
    loaded = [(task, task.examples(answers)) for task in tasks]
    measured = [Measurement.of(manifest.weights_id, task.name, answers, examples, variant) for task, examples in loaded]
    found = {one.task: find_profile(store, one) for one in measured}
    measurer = Measurer(store, reader, machine, answers, scores)
    for one, (task, examples) in zip(measured, loaded, strict=True):
        if found[one.task] is None:
            found[one.task] = ensure_profile(store, one, partial(measurer.measure, task, examples))
            measurer.forget(task)
    if len(tasks) == 1:
        return {"task": tasks[0].name, "profile": DIGEST_PREFIX + str(found[tasks[0].name])}
    return {"profiles": {name: DIGEST_PREFIX + str(profile_id) for name, profile_id in found.items()}}


def patterns(store_url: str, model_id: str, tasks: Sequence[Task], answers: Answers, options: BuildOptions) -> Words:
    """Ensure that the set of exactly these tasks' patterns is the live one of the model's weights."""
    store = open_store(store_url)
    manifest = _reader(store, model_id).manifest()
    variant = variant_of(measured_for(options.metric))
    profiles = [_profile(store, manifest, task, answers, variant) for task in tasks]
    built = build_set(profiles, options)
    set_id = built.pattern_set.set_id
    if live_set_id(store, manifest.weights_id) != set_id:
        publish(store, built, live=True)
    return {"patternSet": DIGEST_PREFIX + set_id}


def _reader(store: Store, model_id: str) -> PackReader:
    """The pack, whose manifest has been read. Raises NotFound (MODEL_NOT_FOUND)."""
    reader = PackReader(store, pack_folder(bare_digest(model_id)))
    try:
        reader.manifest()
    except NotFound as error:
        raise NotFound(f"no pack {model_id} in {store.url}; pack the model first", reason="MODEL_NOT_FOUND") from error
    return reader


def _profile(store: Store, manifest: Manifest, task: Task, answers: Answers, variant: str) -> Profile:
    return load_profile(store, Measurement.of(manifest.weights_id, task.name, answers, task.examples(answers), variant))
