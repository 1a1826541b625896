"""How a worker's slots spread over the layers: taken from the live pattern set at the start, compared with it later."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import replace

from premoe_runtime.formats.allocation import even_slots, slots_text
from premoe_runtime.formats.errors import NotFound, PremoeError, Unavailable
from premoe_runtime.formats.manifest import Manifest
from premoe_worker.limits import Limits
from premoe_worker.ports import Retrieval

log = logging.getLogger(__name__)

RETRY_S = 1.0


async def split_slots(limits: Limits, retrieval: Retrieval | None, manifest: Manifest, *, wait_s: float) -> Limits:
    """The limits with slots spread as the live set says, for as long as the process lives.

    Equal slots stay where every expert has one, where worker or set are uniform, and, with a ``split_problem``, where
    there is no set, or no answer within ``wait_s`` seconds. Raises Conflict and CorruptData for a split that does not
    fit the limits.
    """
    if retrieval is None or limits.slots == manifest.layer_experts:
        return limits
    if limits.allocation == "uniform":
        with suppress(PremoeError):
            if await retrieval.layer_slots(manifest.weights_id, limits.kept, limits.spare):
                log.info("the live pattern set shares its budgets over the layers; --allocation uniform does not")
        return limits
    deadline = time.monotonic() + wait_s
    while True:
        try:
            slots = await retrieval.layer_slots(manifest.weights_id, limits.kept, limits.spare)
            break
        except NotFound:
            return _equal(limits, "there was no live pattern set at the start")
        except Unavailable as error:
            if time.monotonic() >= deadline:
                return _equal(limits, f"the live pattern set could not be asked at the start ({error})")
        await asyncio.sleep(RETRY_S)
    if slots:
        return limits.split(slots)
    log.info("the live pattern set was built with uniform allocation: so are this worker's slots")
    return limits


class SplitWatch:
    """Says, once for each, that a later live set spreads its slots otherwise than this worker does.

    ``problem``: why this worker does not follow the live set, as far as is known; empty when it does.
    """

    def __init__(self, limits: Limits, retrieval: Retrieval, manifest: Manifest) -> None:
        self._limits = limits
        self._retrieval = retrieval
        self._manifest = manifest
        self._seen: set[str] = set()
        self._said: tuple[int, ...] = limits.slots
        self.problem = limits.split_problem

    async def saw(self, pattern_id: str) -> None:
        """Look at the live set when ``pattern_id`` is new. Never raises a PremoeError."""
        if self._limits.allocation == "uniform" or pattern_id in self._seen:
            return
        self._seen.add(pattern_id)
        kept, spare = self._limits.kept, self._limits.spare
        try:
            found = await self._retrieval.layer_slots(self._manifest.weights_id, kept, spare)
        except PremoeError:
            # The next new pattern asks again; this one runs whatever the answer.
            return
        wanted = found or even_slots(kept + spare, self._manifest.layer_experts, self._limits.allocation)
        self.problem = ""
        if wanted != self._limits.slots:
            self.problem = (
                f"the live pattern set spreads slots over the layers as {slots_text(wanted)}, this worker as "
                f"{slots_text(self._limits.slots)}: tasks keep their best experts within the worker's; restart it to "
                "follow the set"
            )
            if wanted != self._said:
                log.warning("%s", self.problem)
        self._said = wanted


def _equal(limits: Limits, why: str) -> Limits:
    problem = f"{why}: every layer has {slots_text(limits.slots)} slots until a restart"
    log.warning("%s", problem)
    return replace(limits, split_problem=problem)
