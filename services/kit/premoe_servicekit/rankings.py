"""GetPattern's answers as rankings, for every caller of the retrieval service."""

from __future__ import annotations

import numpy as np
from premoe.patterns.v1 import patterns_pb2

from premoe_runtime.formats.errors import CorruptData
from premoe_runtime.formats.ranking import Ranking


def read_ranking(response: patterns_pb2.GetPatternResponse, peer: str) -> Ranking:
    """Raises CorruptData for an answer that is no ranking."""
    pattern = response.pattern
    rows = [np.asarray(layer.experts, np.int64) for layer in response.layers]
    if not rows or any(not len(row) or not np.array_equal(np.sort(row), np.arange(len(row))) for row in rows):
        raise CorruptData(f"{peer}: the ranking of {pattern.pattern_id} is not a permutation of experts")
    if pattern.semantics not in ("selection", "slice"):
        raise CorruptData(f"{peer}: {pattern.pattern_id} has unknown mask semantics {pattern.semantics!r}")
    shared = pattern.allocation == "shared"
    if not shared and pattern.allocation not in ("", "uniform"):
        raise CorruptData(f"{peer}: {pattern.pattern_id} has unknown allocation {pattern.allocation!r}")
    # A service of before there were scores sends none, and its patterns are uniform.
    scores = [np.asarray(layer.scores or np.zeros(len(layer.experts)), np.float64) for layer in response.layers]
    if any(len(row) != len(own) or not np.isfinite(own).all() for row, own in zip(rows, scores, strict=True)):
        raise CorruptData(f"{peer}: {pattern.pattern_id} does not come with one finite score an expert")
    width = max(map(len, rows))
    return Ranking(
        pattern.pattern_id,
        pattern.task,
        pattern.weights_id,
        "slice" if pattern.semantics == "slice" else "selection",
        pattern.kind == patterns_pb2.PATTERN_KIND_GENERALIST,
        np.stack([np.concatenate([row, np.arange(len(row), width)]) for row in rows]),
        np.stack([np.pad(own, (0, width - len(own)), constant_values=-np.inf) for own in scores]),
        "shared" if shared else "uniform",
    )
