"""Profiles by what they were measured from, so that nothing is measured twice.

``measured/<key>.json`` names the profile of a model, a task, its examples and the way they are run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import blake3
from pydantic import BaseModel, ConfigDict, ValidationError

from premoe_runtime.formats.errors import Conflict, NotFound
from premoe_runtime.offline.calibration import Answers, Example, calibration_digest
from premoe_runtime.offline.patterns.library import put_profile
from premoe_runtime.offline.profile.record import Profile, profile_path
from premoe_runtime.offline.profile.scores import ROUTER_ONLY, USUAL
from premoe_runtime.storage import Store

MEASURE_VERSION = 2
"""Part of every key: raise it when the same examples give other profiles than before. Since 2 they weigh impact."""


def variant_of(scores: tuple[str, ...], dtype: str = "auto") -> str:
    """What makes profiles of the same text differ: the scores that they are measured for, and the arithmetic."""
    named = {USUAL: [], ROUTER_ONLY: ["router-only"]}.get(scores, [f"scores {' '.join(sorted(scores))}"])
    return " ".join([*named, *[dtype] * (dtype != "auto")])


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    profile_id: str
    task: str
    weights_id: str


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a profile is measured from; the same measurement gives the same profile."""

    weights_id: str
    task: str
    answers: Answers
    calibration: str
    """Digest of the examples."""
    variant: str = ""
    """What else a person chose, such as the arithmetic; empty for the defaults."""

    @classmethod
    def of(
        cls, weights_id: str, task: str, answers: Answers, examples: Sequence[Example], variant: str = ""
    ) -> Measurement:
        return cls(weights_id, task, answers, calibration_digest(examples), variant)

    def path(self, version: int = MEASURE_VERSION) -> str:
        """Key of the record under the object store's root."""
        parts = [version, self.weights_id, self.task, self.answers, self.calibration]
        parts += [self.variant] if self.variant else []
        return f"measured/{blake3.blake3(json.dumps(parts).encode()).hexdigest()[:32]}.json"


def find_profile(store: Store, measurement: Measurement, version: int = MEASURE_VERSION) -> str | None:
    """Id of the profile that was measured so, if it is in the store."""
    try:
        found = _Record.model_validate_json(store.get(measurement.path(version))).profile_id
    except (NotFound, ValidationError):
        return None
    return found if store.exists(profile_path(found)) else None


def load_profile(store: Store, measurement: Measurement) -> Profile:
    """The profile that was measured so, or else by an older version.

    Raises NotFound (PROFILE_NOT_FOUND), CorruptData, Unavailable.
    """
    versions = range(MEASURE_VERSION, 0, -1)
    found = next((found for version in versions if (found := find_profile(store, measurement, version))), None)
    if found is None:
        raise NotFound(
            f"task {measurement.task} has not been profiled with this calibration data (answers: "
            f"{measurement.answers}); profile it first",
            reason="PROFILE_NOT_FOUND",
        )
    return Profile.load(store.get, found)


def ensure_profile(store: Store, measurement: Measurement, measure: Callable[[], Profile]) -> str:
    """Id of the profile; ``measure`` runs unless it is there already. Who records it first wins.

    Raises what ``measure`` and the store raise.
    """
    found = find_profile(store, measurement)
    if found is not None:
        return found
    profile = measure()
    profile_id = put_profile(store, profile)
    record = _Record(profile_id=profile_id, task=measurement.task, weights_id=measurement.weights_id)
    with suppress(Conflict):
        store.put_if_absent(measurement.path(), record.model_dump_json().encode())
        return profile_id
    found = find_profile(store, measurement)
    if found is not None:
        return found
    # A record whose profile is gone, or that cannot be read: ours replaces it.
    store.put(measurement.path(), record.model_dump_json().encode())
    return profile_id
