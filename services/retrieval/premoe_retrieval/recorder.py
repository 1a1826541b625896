"""The last signatures and what was decided on them, in memory, for trying another pattern set on them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from premoe_runtime.formats.recognition import Decision
from premoe_runtime.formats.signature import Signatures

PAGE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Recorded:
    """One request. ``number`` counts up from 1; ``at``: seconds since 1970."""

    number: int
    at: float
    weights_id: str
    set_id: str
    signatures: Signatures
    decision: Decision


class Recorder:
    """Keeps the last ``capacity``; 0 keeps none. Owned by the event loop."""

    def __init__(self, capacity: int = 0, clock: Callable[[], float] = time.time) -> None:
        self.capacity = capacity
        self._kept: deque[Recorded] = deque(maxlen=capacity)
        self._clock = clock
        self._number = 0

    def note(self, weights_id: str, set_id: str, signatures: Signatures, decision: Decision) -> None:
        if self.capacity:
            self._number += 1
            self._kept.append(Recorded(self._number, self._clock(), weights_id, set_id, signatures, decision))

    def page(self, weights_id: str, after: int) -> Sequence[Recorded]:
        """Those of these weights with a number above ``after``, oldest first, up to 4 MiB of signatures."""
        later = (each for each in self._kept if each.number > after and each.weights_id == weights_id)
        found: list[Recorded] = []
        num_bytes = 0
        for each in later:
            num_bytes += sum(signature.nbytes for signature in each.signatures.all)
            if found and num_bytes > PAGE_BYTES:
                break
            found.append(each)
        return found
