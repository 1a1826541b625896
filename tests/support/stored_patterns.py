"""A small pattern set in an object store: tasks whose exemplars lie around orthogonal directions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from premoe_runtime.formats.arrays import F32
from premoe_runtime.formats.ids import WeightsId
from premoe_runtime.formats.pattern import GENERALIST_TASK, Pattern, PatternKind, pattern_path
from premoe_runtime.formats.pattern_set import Member, PatternSet, SetDocument, set_paths
from premoe_runtime.formats.signature import SignatureSpec, unit
from premoe_runtime.storage import Store

WEIGHTS = "ab" * 32
DIMENSION = 16
TASKS = ("sorting", "spelling", "counting")
CUTOFF = 0.9


@dataclass(frozen=True, slots=True)
class StoredSet:
    """A set and its id; ``near(task)`` is a signature that its task recognises, ``FAR`` one that none does."""

    set_id: str
    pattern_set: PatternSet
    patterns: dict[str, Pattern]

    def pattern_id(self, task: str) -> str:
        return self.pattern_set.member(task).pattern_id

    def near(self, task: str) -> F32:
        return direction(TASKS.index(task))


def direction(axis: int) -> F32:
    vector: F32 = np.eye(DIMENSION, dtype=np.float32)[axis]
    return vector


FAR = direction(DIMENSION - 1)


def store_set(
    store: Store,
    *,
    weights_id: str = WEIGHTS,
    exemplars: int = 7,
    neighbours: int = 5,
    generalist: bool = True,
    seed: int = 0,
) -> StoredSet:
    """Write patterns and a set; nothing is live yet."""
    source = np.random.default_rng(seed)
    patterns = {task: _pattern(task, "specialist", weights_id, source) for task in TASKS}
    if generalist:
        patterns[GENERALIST_TASK] = _pattern(GENERALIST_TASK, "generalist", weights_id, source)
    members = [
        Member(
            pattern_id=patterns[task].pattern_id,
            task=task,
            kind="specialist",
            cutoff=CUTOFF,
            first_exemplar=number * exemplars,
            exemplars=exemplars,
        )
        for number, task in enumerate(TASKS)
    ]
    if generalist:
        members.append(Member(pattern_id=patterns[GENERALIST_TASK].pattern_id, task=GENERALIST_TASK, kind="generalist"))
    rows = [direction(number) + source.normal(scale=0.02, size=(exemplars, DIMENSION)) for number in range(len(TASKS))]
    document = SetDocument(
        weights_id=weights_id,
        metric="peu",
        semantics="selection",
        signature=SignatureSpec(dimension=DIMENSION),
        neighbours=neighbours,
        quantile=0.01,
        members=tuple(members),
        generalist_id=patterns[GENERALIST_TASK].pattern_id if generalist else None,
        exemplars_digest="",
    )
    pattern_set = PatternSet.make(document, unit(np.concatenate(rows).astype(np.float32)))
    set_id = pattern_set.set_id
    for pattern in patterns.values():
        store.put(pattern_path(pattern.pattern_id), pattern.to_bytes())
    for path, data in zip(set_paths(set_id), pattern_set.to_files(), strict=True):
        store.put(path, data)
    return StoredSet(set_id, pattern_set, patterns)


def _pattern(task: str, kind: PatternKind, weights_id: str, source: np.random.Generator) -> Pattern:
    shape = (2, 8)
    return Pattern.from_scores(
        source.random(shape),
        source.random(shape),
        source.integers(0, 100, shape),
        weights_id=WeightsId(weights_id),
        task=task,
        kind=kind,
        metric="peu",
        profiles=["p1"],
    )
