"""What a stopped measurement leaves in the object store, so that the next one goes on where it ended.

``unfinished/<weights>-<task>``: blake3 of the rest, then a safetensors file. It is replaced whole after every finished
step, belongs to one way of measuring (``settings``), and goes when the profile is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import blake3
import numpy as np

from premoe_runtime.formats import arrays
from premoe_runtime.formats.arrays import F64
from premoe_runtime.formats.errors import CorruptData, NotFound
from premoe_runtime.offline.profile.accumulator import NOT_FINITE
from premoe_runtime.offline.profile.run import Sums
from premoe_runtime.offline.profile.scores import SUMS
from premoe_runtime.offline.profile.state import ProfileState
from premoe_runtime.storage import Store

_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class Stopped:
    """Where a measurement stood: steps done, what they added up (None: nothing), the model's own answers so far."""

    done: int = 0
    sums: Sums | None = None
    answers: Mapping[int, tuple[int, ...]] = field(default_factory=dict)


class Unfinished:
    """The place of one task's unfinished measurement. ``say`` is told what becomes of what lies there."""

    def __init__(
        self, store: Store, weights_id: str, task: str, say: Callable[[str], None] = lambda text: None
    ) -> None:
        self._store = store
        self._path = f"unfinished/{weights_id[:16]}-{task}"
        self.say = say

    def load(self, settings: str) -> Stopped:
        """Where it stopped; the start, and a word why, when it was measured otherwise or the file is damaged."""
        try:
            data = self._store.get(self._path)
        except NotFound:
            return Stopped()
        try:
            made, stopped = _decode(data, self._store.at(self._path))
        except CorruptData as error:
            self.say(f"{error}; it starts anew")
            return Stopped()
        if made != settings:
            self.say(
                f"{self._store.at(self._path)}: an unfinished profile of this task was measured with other data or "
                "settings; it starts anew"
            )
            return Stopped()
        self.say(f"{self._store.at(self._path)}: the profile that was stopped goes on behind step {stopped.done}")
        return stopped

    def save(self, settings: str, stopped: Stopped) -> None:
        """Replace what lies there, whole or not at all. Raises Exhausted, Unavailable."""
        self._store.put(self._path, _encode(settings, stopped))

    def clear(self) -> None:
        """The profile is stored, or starts anew."""
        self._store.delete(self._path)


class Keeper:
    """The steps of one measurement, kept as they finish. Without a place nothing is kept, and nothing was.

    ``answers``: the model's own, by the sample's index.
    """

    def __init__(self, place: Unfinished | None, settings: str) -> None:
        self._place, self.settings = place, settings
        self.stopped = Stopped() if place is None else place.load(settings)
        self.answers = dict(self.stopped.answers)

    def save(self, done: int, sums: Sums | None) -> None:
        if self._place is not None:
            self._place.save(self.settings, Stopped(done, sums, self.answers))

    @contextmanager
    def forgetting(self) -> Iterator[None]:
        """Leave nothing of a measurement that met values which are not finite: there is nothing to go on with."""
        try:
            yield
        except CorruptData as error:
            if error.reason == NOT_FINITE and self._place is not None:
                self._place.clear()
            raise

    def start_anew(self, why: str) -> None:
        """What the steps so far left elsewhere is gone."""
        self.stopped = Stopped()
        if self._place is not None:
            self._place.say(f"{why}; it starts anew")


def _encode(settings: str, stopped: Stopped) -> bytes:
    found: dict[str, arrays.Array] = {
        "answered": np.array([[index, len(ids)] for index, ids in stopped.answers.items()], np.int64).reshape(-1, 2),
        "answers": np.array([token for ids in stopped.answers.values() for token in ids], np.int64),
    }
    if stopped.sums is not None:
        state = stopped.sums.state
        found |= {one.name: table for one, table in state.sums.items()} | {"means": stopped.sums.means}
    body = arrays.encode(found, {"settings": settings, "done": str(stopped.done)})
    return blake3.blake3(body).digest() + body


def _decode(data: bytes, where: str) -> tuple[str, Stopped]:
    """Settings and state. Raises CorruptData."""
    digest, body = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if blake3.blake3(body).digest() != digest:
        raise CorruptData(f"{where}: an unfinished profile is damaged", reason="UNFINISHED_DAMAGED")
    found, metadata = arrays.decode(body, where=where)
    lengths, tokens = found.pop("answered").tolist(), found.pop("answers").tolist()
    answers: dict[int, tuple[int, ...]] = {}
    for index, length in lengths:
        answers[index], tokens = tuple(tokens[:length]), tokens[length:]
    means = found.pop("means", None)
    state = ProfileState({SUMS[name]: table for name, table in found.items()})
    sums = None if means is None else Sums(state, cast("F64", means))
    return metadata["settings"], Stopped(int(metadata["done"]), sums, answers)
