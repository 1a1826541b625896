"""The profile file: sums, signatures and where they come from."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from premoe_runtime.formats import arrays
from premoe_runtime.formats.arrays import F32
from premoe_runtime.formats.errors import CorruptData, InvalidInput
from premoe_runtime.formats.ids import WeightsId
from premoe_runtime.formats.signature import SignatureSpec
from premoe_runtime.offline.calibration import Answers
from premoe_runtime.offline.profile.scores import SUMS
from premoe_runtime.offline.profile.state import BASE, ProfileState, pooled

FORMAT = "premoe-profile/3"
OLDER = ("premoe-profile/1", "premoe-profile/2")
"""Formats with one fixed list of sums, which are read as what they hold of today's."""


class Calibration(BaseModel):
    """One calibration text that went into a profile."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: str = Field(min_length=1)
    samples: int = Field(ge=1)
    tokens: int = Field(ge=1)
    answers: Answers


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """Mergeable statistics of one task for one ``weights_id``; patterns are derived from it.

    layer_experts  experts of every MoE layer; what the arrays have beyond them stands for none
    signatures     f32[N, D], one unit row per calibration prompt, in the file's order
    stored_id      id of the file of an older format that it was read from, whose bytes would not be written today
    """

    weights_id: WeightsId
    task: str
    top_k: int
    layer_experts: tuple[int, ...]
    calibration: tuple[Calibration, ...]
    signature: SignatureSpec
    state: ProfileState
    signatures: F32
    tool: str = ""
    stored_id: str = ""

    @property
    def profile_id(self) -> str:
        """blake3 of the file."""
        return self.stored_id or arrays.digest(self.to_bytes())

    @property
    def samples(self) -> int:
        return sum(part.samples for part in self.calibration)

    @property
    def tokens(self) -> int:
        return sum(part.tokens for part in self.calibration)

    def to_bytes(self) -> bytes:
        metadata = {
            "format": FORMAT,
            "weights_id": self.weights_id,
            "task": self.task,
            "top_k": str(self.top_k),
            "calibration": json.dumps([part.model_dump() for part in self.calibration]),
            "signature": self.signature.model_dump_json(),
            "tool": self.tool,
        }
        if len(set(self.layer_experts)) > 1:
            # Left out otherwise: the arrays say it, and profiles keep the ids they had before layers could differ.
            metadata["layer_experts"] = json.dumps(list(self.layer_experts))
        tensors = {one.name: table for one, table in self.state.sums.items()}
        return arrays.encode({**tensors, "signatures": self.signatures}, metadata)

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str = "profile") -> Profile:
        """Read a profile file, of this format or an older one. Raises CorruptData."""
        tensors, metadata = arrays.decode(data, where=where)
        signatures = tensors.pop("signatures", None)
        named = metadata.get("format", "")
        if named not in (FORMAT, *OLDER):
            raise _corrupt(where, f"format {named[:40]!r} is none that this version reads")
        state = _state(_older(tensors, where) if named in OLDER else tensors, where)
        try:
            calibration = TypeAdapter(tuple[Calibration, ...]).validate_json(metadata.get("calibration", ""))
            spec = SignatureSpec.model_validate_json(metadata.get("signature", ""))
            top_k = int(metadata.get("top_k", ""))
            experts = TypeAdapter(tuple[int, ...]).validate_json(
                metadata.get("layer_experts") or json.dumps([state.shape[1]] * state.shape[0])
            )
        except (ValidationError, ValueError) as error:
            raise _corrupt(where, "metadata is incomplete or malformed") from error
        whose = metadata.get("weights_id") and metadata.get("task", "").strip()
        if not (whose and calibration and metadata["task"].isprintable()):
            raise _corrupt(where, "metadata lacks weights_id, task or calibration")
        if len(experts) != state.shape[0] or not 1 <= top_k <= min(experts) <= max(experts) == state.shape[1]:
            raise _corrupt(where, f"arrays are of shape {list(state.shape)}, but layers have {list(experts)} experts")
        if signatures is None or signatures.dtype != np.float32 or signatures.shape[1:] != (spec.dimension,):
            raise _corrupt(where, f"signatures are not float32 rows of {spec.dimension}")
        if not np.isfinite(cast("F32", signatures)).all():
            raise _corrupt(where, "signatures are not finite")
        return cls(
            weights_id=WeightsId(metadata["weights_id"]),
            task=metadata["task"],
            top_k=top_k,
            layer_experts=experts,
            calibration=calibration,
            signature=spec,
            state=state,
            signatures=cast("F32", signatures),
            tool=metadata.get("tool", ""),
            stored_id=arrays.digest(data) if metadata["format"] in OLDER else "",
        )

    @classmethod
    def load(cls, get: Callable[[str], bytes], profile_id: str) -> Profile:
        """Read ``profiles/<id>.safetensors`` through ``get`` and check its id. Raises NotFound, CorruptData."""
        path = profile_path(profile_id)
        data = get(path)
        if arrays.digest(data) != profile_id:
            raise _corrupt(path, "content does not match its id")
        return cls.from_bytes(data, where=path)


def profile_path(profile_id: str) -> str:
    """Key of a profile under the object store's root."""
    return f"profiles/{profile_id}.safetensors"


def merge(profiles: Sequence[Profile]) -> Profile:
    """One task's profiles as one: the sums that all have are added exactly, signatures follow each other.

    Raises InvalidInput when they differ in weights, task, top-k or signature definition.
    """
    first = profiles[0]
    for other in profiles[1:]:
        check_same_weights([first, other])
        if other.task != first.task:
            raise InvalidInput(
                f"profiles of tasks {first.task} and {other.task} do not merge", reason="PROFILE_MISMATCH"
            )
    return Profile(
        weights_id=first.weights_id,
        task=first.task,
        top_k=first.top_k,
        layer_experts=first.layer_experts,
        calibration=tuple(part for profile in profiles for part in profile.calibration),
        signature=first.signature,
        state=pooled(profile.state for profile in profiles),
        signatures=np.concatenate([profile.signatures for profile in profiles]),
        tool=first.tool,
    )


def check_same_weights(profiles: Sequence[Profile]) -> None:
    """Raise InvalidInput unless all profiles belong to the same weights and were made alike."""
    first = profiles[0]
    for other in profiles[1:]:
        if other.weights_id != first.weights_id:
            raise InvalidInput(
                f"profile of task {other.task} belongs to weights {other.weights_id[:12]}, "
                f"that of {first.task} to {first.weights_id[:12]}; a set takes profiles of one model",
                reason="WEIGHTS_MISMATCH",
            )
        if (other.top_k, other.signature, other.layer_experts) != (first.top_k, first.signature, first.layer_experts):
            raise InvalidInput(
                f"profiles {first.profile_id[:12]} (task {first.task}) and {other.profile_id[:12]} (task {other.task}) "
                "were made with different settings; remove one (`premoe profile rm`) and make it again",
                reason="PROFILE_MISMATCH",
            )


def _older(tensors: dict[str, arrays.Array], where: str) -> dict[str, arrays.Array]:
    """An older format's arrays as today's: tokens were counted by bin, and what was not measured was zero."""
    tensors = dict(tensors)
    chosen, weighed = tensors.pop("chosen", None), tensors.pop("weighed", None)
    if chosen is None or chosen.ndim != 3:
        raise _corrupt(where, "array 'chosen' is missing or of the wrong shape")
    if weighed is None or not np.array_equal(weighed, tensors.get("tokens", ())):
        tensors = {name: table for name, table in tensors.items() if name not in ("norm", "impact")}
    return {**tensors, "counts": np.asarray(cast("arrays.I64", chosen).sum(axis=-1))}


def _state(tensors: dict[str, arrays.Array], where: str) -> ProfileState:
    unknown, missing = tensors.keys() - SUMS.keys(), {one.name for one in BASE} - tensors.keys()
    if unknown or missing or tensors["soft"].ndim != 2 or 0 in tensors["soft"].shape:
        raise _corrupt(where, f"arrays are {sorted(tensors)}, which is no profile of this version")
    layers, experts = tensors["soft"].shape
    for name, table in tensors.items():
        if table.dtype != SUMS[name].dtype or not SUMS[name].fits(table.shape, layers, experts):
            raise _corrupt(where, f"array {name!r} has the wrong dtype or shape")
        if not np.isfinite(cast("F32", table)).all():
            raise _corrupt(where, f"array {name!r} is not finite")
    return ProfileState({one: tensors[name] for name, one in SUMS.items() if name in tensors})


def _corrupt(where: str, what: str) -> CorruptData:
    return CorruptData(
        f"{where}: {what}; remove it (`premoe profile rm`) and profile the task again", reason="PROFILE_INVALID"
    )
