"""A pattern: which experts one task needs, as a ranking per layer derived from a profile by one metric."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, cast, get_args

import numpy as np
from pydantic import Field

from premoe_runtime.formats import allocation as layers
from premoe_runtime.formats import arrays
from premoe_runtime.formats.arrays import F32, F64, I16, I64, Mask
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.choices import Allocation, Semantics
from premoe_runtime.formats.errors import CorruptData, InvalidInput, NotFound
from premoe_runtime.formats.ids import PatternId, WeightsId

_METRIC = r"[a-z0-9][a-z0-9.@_-]{0,63}"
Metric = Annotated[str, Field(pattern=f"^{_METRIC}$")]
"""Name of the score that ranks. Any: whoever serves a pattern needs its ranking, not how it came about."""
PatternKind = Literal["specialist", "generalist"]

GENERALIST_TASK = "generalist"


@dataclass(frozen=True, slots=True, eq=False)
class Pattern:
    """Ranking of every MoE layer's experts for one task (or pooled over several) and one ``weights_id``.

    ``allocation`` says whether a budget's experts are shared over the layers, for which ``scores`` must compare
    between layers, or equally many a layer.

    scores, tiebreak  f32[L, E]: the metric, -inf for what a layer has fewer than E, and SEER-soft for equal scores
    counts            i64[L, E]: tokens routed to the expert in calibration
    ranking           i16[L, E]: expert ids, most needed first, those that do not exist last
    """

    weights_id: WeightsId
    task: str
    kind: PatternKind
    metric: Metric
    semantics: Semantics
    allocation: Allocation
    profiles: tuple[str, ...]
    scores: F32
    tiebreak: F32
    counts: I64
    ranking: I16

    @classmethod
    def from_scores(
        cls,
        scores: F64,
        tiebreak: F64,
        counts: I64,
        *,
        weights_id: WeightsId,
        task: str,
        kind: PatternKind,
        metric: Metric,
        profiles: Sequence[str],
        semantics: Semantics = "selection",
        allocation: Allocation = "uniform",
    ) -> Pattern:
        """Rank ``scores`` f64[L, E]; the ranking is taken from the float32 values that the file stores."""
        stored = np.asarray(scores, np.float32)
        ties = np.asarray(tiebreak, np.float32)
        return cls(
            weights_id=weights_id,
            task=task,
            kind=kind,
            metric=metric,
            semantics=semantics,
            allocation=allocation,
            profiles=tuple(sorted(profiles)),
            scores=stored,
            tiebreak=ties,
            counts=np.asarray(counts, np.int64),
            ranking=rank(stored, ties, counts),
        )

    @property
    def pattern_id(self) -> PatternId:
        """blake3 of the file."""
        return PatternId(arrays.digest(self.to_bytes()))

    @property
    def num_layers(self) -> int:
        return int(self.ranking.shape[0])

    @property
    def num_experts(self) -> int:
        return int(self.ranking.shape[1])

    @property
    def layer_experts(self) -> tuple[int, ...]:
        """Experts of every MoE layer."""
        return tuple((self.scores > -np.inf).sum(axis=1).tolist())

    def kept(self, budget: Budget, slots: Sequence[int] | None = None) -> Mask:
        """bool[L, E]: the best experts, ``budget.kept`` a layer on average, within the ``slots`` of every layer.

        Without ``slots`` the task's own split, up to all experts of a layer. Raises InvalidInput when the model has
        fewer experts, or too few slots.
        """
        if budget.kept > self.num_experts:
            raise InvalidInput(
                f"budget {budget} keeps {budget.kept} experts a layer, but the model has {self.num_experts}; "
                "keep no more than that",
                reason="BUDGET_INVALID",
            )
        counts = layers.layer_counts(self.scores, budget.kept, budget.active, self.allocation, slots)
        return layers.kept(self.ranking, counts)

    def without(self, experts: Mask) -> Pattern:
        """The same without these experts, bool[L, E], as if the model did not have them. To be kept by, not stored."""
        order = layers.without(self.ranking, experts).astype(np.int16)
        return replace(self, scores=np.where(experts, np.float32(-np.inf), self.scores), ranking=order)

    def to_bytes(self) -> bytes:
        metadata = {
            "format": "premoe-pattern/1",
            "weights_id": self.weights_id,
            "task": self.task,
            "kind": self.kind,
            "metric": self.metric,
            "semantics": self.semantics,
            "profiles": json.dumps(list(self.profiles)),
        }
        if self.allocation != "uniform":
            # Left out otherwise: uniform patterns keep the ids they had before there was a choice.
            metadata["allocation"] = self.allocation
        tensors: dict[str, arrays.Array] = {
            "scores": self.scores,
            "tiebreak": self.tiebreak,
            "counts": self.counts,
            "ranking": self.ranking,
        }
        return arrays.encode(tensors, metadata)

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str = "pattern") -> Pattern:
        """Read a pattern file. Raises CorruptData: bad arrays, shapes, names, or a ranking that is not the scores'."""
        tensors, metadata = arrays.decode(data, where=where)
        shape = _check_tensors(tensors, where)
        if len(shape) != 2 or 0 in shape:
            raise _corrupt(where, f"arrays are not of shape [layers, experts] but {list(shape)}")
        pattern = cls(
            weights_id=WeightsId(_text(metadata, "weights_id", where)),
            task=_text(metadata, "task", where),
            kind=cast("PatternKind", _choice(metadata, "kind", get_args(PatternKind), where)),
            metric=_metric(metadata, where),
            semantics=cast("Semantics", _choice(metadata, "semantics", get_args(Semantics), where)),
            allocation=cast(
                "Allocation", _choice({"allocation": "uniform"} | metadata, "allocation", get_args(Allocation), where)
            ),
            profiles=_ids(_text(metadata, "profiles", where), where),
            scores=cast("F32", tensors["scores"]),
            tiebreak=cast("F32", tensors["tiebreak"]),
            counts=cast("I64", tensors["counts"]),
            ranking=cast("I16", tensors["ranking"]),
        )
        if not np.array_equal(rank(pattern.scores, pattern.tiebreak, pattern.counts), pattern.ranking):
            raise _corrupt(where, "ranking is not the order of the scores")
        return pattern

    @classmethod
    def load(cls, get: Callable[[str], bytes], pattern_id: str) -> Pattern:
        """Read ``patterns/<id>.safetensors`` through ``get`` and check its id. Raises NotFound, CorruptData."""
        path = pattern_path(pattern_id)
        try:
            data = get(path)
        except NotFound as error:
            place = str(error).partition("; ")[0]
            raise NotFound(f"{place}; build it again with `premoe patterns build`", reason=error.reason) from error
        if arrays.digest(data) != pattern_id:
            raise _corrupt(path, "content does not match its id")
        return cls.from_bytes(data, where=path)


def pattern_path(pattern_id: str) -> str:
    """Key of a pattern under the object store's root."""
    return f"patterns/{pattern_id}.safetensors"


def rank(scores: F32, tiebreak: F32, counts: I64) -> I16:
    """Order experts of every layer: by score, then tie-break, then count (all falling), then lower id; i16[L, E].

    PEU is exactly 0 for most experts of a short calibration, so the ties decide much of the kept set.
    """
    ids = np.broadcast_to(np.arange(scores.shape[-1]), scores.shape)
    return np.lexsort((ids, -counts, -tiebreak, -scores), axis=-1).astype(np.int16)


def _check_tensors(tensors: dict[str, arrays.Array], where: str) -> tuple[int, ...]:
    wanted = {"scores": np.float32, "tiebreak": np.float32, "counts": np.int64, "ranking": np.int16}
    if tensors.keys() != wanted.keys():
        raise _corrupt(where, f"arrays are {sorted(tensors)}, expected {sorted(wanted)}")
    for name, dtype in wanted.items():
        if tensors[name].dtype != dtype or tensors[name].shape != tensors["scores"].shape:
            raise _corrupt(where, f"array {name!r} has the wrong dtype or shape")
    scores = cast("F32", tensors["scores"])
    missing = scores == -np.inf
    if not (np.isfinite(scores) | missing).all() or not np.isfinite(cast("F32", tensors["tiebreak"])).all():
        raise _corrupt(where, "scores are not finite")
    if missing.any() and (
        missing[..., 0].any() or missing[..., -1].all() or (missing[..., :-1] > missing[..., 1:]).any()
    ):
        raise _corrupt(where, "experts without a score are not the last ones of some layers")
    return scores.shape


def _text(metadata: dict[str, str], key: str, where: str) -> str:
    value = metadata.get(key, "")
    if not value:
        raise _corrupt(where, f"metadata lacks {key!r}")
    if not value.isprintable():
        raise _corrupt(where, f"metadata {key!r} cannot be printed")
    return value


def _metric(metadata: dict[str, str], where: str) -> Metric:
    value = _text(metadata, "metric", where)
    if not re.fullmatch(_METRIC, value):
        raise _corrupt(where, f"metadata 'metric' is {value[:80]!r}, which is no name of a score")
    return value


def _choice(metadata: dict[str, str], key: str, choices: tuple[str, ...], where: str) -> str:
    value = _text(metadata, key, where)
    if value not in choices:
        raise _corrupt(where, f"metadata {key!r} is {value[:80]!r}, expected one of {', '.join(choices)}")
    return value


def _ids(text: str, where: str) -> tuple[str, ...]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _corrupt(where, "metadata 'profiles' is not JSON") from error
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _corrupt(where, "metadata 'profiles' is not a list of ids")
    return tuple(value)


def _corrupt(where: str, what: str) -> CorruptData:
    return CorruptData(f"{where}: {what}; build it again with `premoe patterns build`", reason="PATTERN_INVALID")
