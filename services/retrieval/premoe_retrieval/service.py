"""Recognise the task of a signature, and look after pattern sets: index, live pointer, deletion.

Knows nothing of gRPC or of the index behind the port.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from premoe_retrieval.ports import PatternIndex
from premoe_retrieval.recorder import Recorder
from premoe_retrieval.repository import PatternRepository
from premoe_runtime.formats.arrays import F32
from premoe_runtime.formats.choices import OnUnknown
from premoe_runtime.formats.conversation import Asking, decide_turn
from premoe_runtime.formats.errors import Conflict, CorruptData, InvalidInput, NotFound, PremoeError
from premoe_runtime.formats.pattern import Pattern
from premoe_runtime.formats.pattern_set import PatternSet
from premoe_runtime.formats.recognition import Decision, Neighbour
from premoe_runtime.formats.signature import Signatures

NORM_TOLERANCE = 1e-3

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Retrieved:
    """A decision and the set that it was made in."""

    decision: Decision
    set_id: str
    neighbours: int
    """Exemplars that the index returned."""
    exemplars: int = 0
    """Exemplars of the set."""


class PatternService:
    """All methods raise NotFound, InvalidInput, Conflict, CorruptData, Unavailable."""

    def __init__(
        self,
        repository: PatternRepository,
        index: PatternIndex,
        *,
        on_unknown: OnUnknown | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self.recorder = recorder or Recorder()
        self._repository = repository
        self._index = index
        self._on_unknown = on_unknown
        self._published: set[str] = set()
        self._stale: tuple[str, ...] = ()
        # Going live and deleting must not pass each other; a set is indexed once, however many ask for it.
        self._changing = asyncio.Lock()

    async def rebuild(self) -> int:
        """Index every live set from object storage; returns how many. A set that cannot be read is logged."""
        rebuilt = 0
        for weights_id in await self._repository.live_weights():
            try:
                set_id = await self._repository.live(weights_id)
                await self._ensure_indexed(set_id, await self._repository.pattern_set(set_id))
                rebuilt += 1
            except PremoeError as error:
                log.warning("live set of weights %s is not indexed: %s", weights_id, error)
        return rebuilt

    async def find_stale(self) -> tuple[str, ...]:
        """Weights that have a live set and, since the model was packed anew, no pack. Remembered for messages."""
        packed = await self._repository.packed_weights()
        found = tuple(weights_id for weights_id in await self._repository.live_weights() if packed.lack(weights_id))
        if found != self._stale and found:
            log.warning("live sets are stale, no pack has their weights: %s", _ids(found))
        self._stale = found
        return found

    async def retrieve(
        self, weights_id: str, signatures: Signatures, *, set_id: str = "", on_unknown: OnUnknown | None = None
    ) -> Retrieved:
        """Decide for the last turn of a conversation; ``set_id`` empty means the live set of ``weights_id``.

        Where there is none yet and unknown tasks run on the full model, so does every prompt.
        """
        if not weights_id:
            raise InvalidInput("weights_id is empty; say which weights made the signature", reason="WEIGHTS_MISSING")
        on_unknown = on_unknown or self._on_unknown
        for signature in signatures.all:
            check_signature(signature)
        try:
            searched, pattern_set = await self._named_or_live(set_id, weights_id)
        except NotFound as error:
            if on_unknown != "full" or error.reason != "NO_LIVE_SET":
                raise
            return Retrieved(Decision("full", "", "", 0.0, "there is no live pattern set", ()), "", 0)
        turns = signatures.like([pattern_set.embed(signature) for signature in signatures.all])
        if set_id and searched not in self._published and not await self._is_indexed(searched, pattern_set):
            raise NotFound(f"pattern set {searched} is not published; publish it first", reason="SET_NOT_PUBLISHED")
        await self._ensure_indexed(searched, pattern_set)
        decision, neighbours = await self._decide(searched, pattern_set, decide_turn(turns, pattern_set, on_unknown))
        if not set_id:
            self.recorder.note(weights_id, searched, signatures, decision)
        return Retrieved(decision, searched, neighbours, _exemplars(pattern_set))

    async def publish_set(self, set_id: str) -> tuple[int, bool]:
        """Index a set that lies in object storage; returns its exemplars, and whether the index had them before."""
        pattern_set = await self._repository.pattern_set(set_id)
        for member in pattern_set.members:
            if not await self._repository.has_pattern(member.pattern_id):
                raise NotFound(
                    f"pattern {member.pattern_id} of set {set_id} is not in object storage; build the set again",
                    reason="PATTERN_NOT_FOUND",
                )
        async with self._changing:
            already = await self._is_indexed(set_id, pattern_set)
            if not already:
                await self._publish(set_id, pattern_set)
        return _exemplars(pattern_set), already

    async def set_live(self, weights_id: str, set_id: str) -> str:
        """Switch the live pointer to a published set; returns the one that was live before, or ""."""
        pattern_set = await self._repository.pattern_set(set_id)
        _check_weights(set_id, pattern_set, weights_id)
        (await self._repository.packed_weights()).check(set_id, weights_id)
        async with self._changing:
            if not await self._is_indexed(set_id, pattern_set):
                raise Conflict(
                    f"pattern set {set_id} is not published; publish it before it goes live", reason="SET_NOT_PUBLISHED"
                )
            return await self._repository.set_live(weights_id, set_id)

    async def delete_set(self, set_id: str) -> bool:
        """Take a set out of the index; refused while it is live. False when it was not there."""
        async with self._changing:
            for weights_id in await self._repository.live_weights():
                if await self._live_or_empty(weights_id) == set_id:
                    raise Conflict(
                        f"pattern set {set_id} is live for weights {weights_id}; set another one live first",
                        reason="SET_IS_LIVE",
                    )
            self._published.discard(set_id)
            return await self._index.delete(set_id)

    async def pattern(self, pattern_id: str) -> Pattern:
        return await self._repository.pattern(pattern_id)

    async def list_patterns(self, set_id: str, weights_id: str) -> tuple[str, PatternSet]:
        """The set named, or the live one of ``weights_id``."""
        if not set_id and not weights_id:
            raise InvalidInput("give set_id, or weights_id for its live set", reason="SET_MISSING")
        return await self._named_or_live(set_id, weights_id)

    async def close(self) -> None:
        await self._index.close()

    async def _named_or_live(self, set_id: str, weights_id: str) -> tuple[str, PatternSet]:
        """The set named, or the live one. A live pointer to what is not there, or does not fit, is our own fault."""
        if set_id:
            return set_id, await self._checked(set_id, weights_id)
        try:
            live = await self._repository.live(weights_id)
        except NotFound as error:
            if not self._stale:
                raise
            raise NotFound(
                f"{error}; that of weights {_ids(self._stale)} is stale: the model was packed anew and needs a set of "
                "its own (premoe profile, premoe patterns build --set-live)",
                reason=error.reason,
            ) from error
        try:
            return live, await self._checked(live, weights_id)
        except (NotFound, InvalidInput) as error:
            raise CorruptData(
                f"the live pointer of weights {weights_id} leads nowhere: {error}", reason="LIVE_SET_BROKEN"
            ) from error

    async def _checked(self, set_id: str, weights_id: str) -> PatternSet:
        """A set, made for these weights if any are named."""
        pattern_set = await self._repository.pattern_set(set_id)
        if weights_id:
            _check_weights(set_id, pattern_set, weights_id)
        return pattern_set

    async def _decide(self, set_id: str, pattern_set: PatternSet, asking: Asking) -> tuple[Decision, int]:
        """The decision, and how many exemplars it took."""
        taken = 0
        vector = next(asking)
        while True:
            found = await self._nearest(set_id, pattern_set, vector)
            taken += len(found)
            try:
                vector = asking.send(found)
            except StopIteration as end:
                decision: Decision = end.value
                return decision, taken

    async def _nearest(self, set_id: str, pattern_set: PatternSet, vector: F32) -> Sequence[Neighbour]:
        """Exemplars near a vector, as many of every task as the decision needs."""
        wanted = _wanted(pattern_set)
        if not wanted:
            return ()
        found = await self._index.query(set_id, vector, wanted)
        if len(found) < sum(wanted.values()):
            # The index lost points behind our back (a server restarted empty): the truth is still there.
            log.warning("index holds only part of set %s; publishing it again", set_id)
            await self._index.publish(set_id, pattern_set)
            found = await self._index.query(set_id, vector, wanted)
        return found

    async def _ensure_indexed(self, set_id: str, pattern_set: PatternSet) -> None:
        if set_id in self._published:
            return
        async with self._changing:
            if set_id not in self._published and not await self._is_indexed(set_id, pattern_set):
                await self._publish(set_id, pattern_set)

    async def _publish(self, set_id: str, pattern_set: PatternSet) -> None:
        await self._index.publish(set_id, pattern_set)
        self._published.add(set_id)

    async def _is_indexed(self, set_id: str, pattern_set: PatternSet) -> bool:
        whole = await self._index.count(set_id, pattern_set.dimension) == _exemplars(pattern_set)
        if whole:
            self._published.add(set_id)
        else:
            self._published.discard(set_id)
        return whole

    async def _live_or_empty(self, weights_id: str) -> str:
        try:
            return await self._repository.live(weights_id, fresh=True)
        except NotFound:
            return ""


def check_signature(signature: Iterable[float] | F32) -> F32:
    """f32[D] with finite values and length 1. Raises InvalidInput."""
    vector = np.asarray(signature, np.float32)
    if vector.ndim != 1 or not vector.size:
        raise InvalidInput("signature is empty", reason="SIGNATURE_INVALID")
    if not np.isfinite(vector).all():
        raise InvalidInput("signature has values that are not finite", reason="SIGNATURE_INVALID")
    length = float(np.linalg.norm(vector.astype(np.float64)))
    if abs(length - 1.0) > NORM_TOLERANCE:
        raise InvalidInput(f"signature has length {length:.4g}; normalise it to 1", reason="SIGNATURE_INVALID")
    return vector


def _ids(weights: Sequence[str]) -> str:
    """Cut to what is enough to name them by, and to what fits in a line."""
    return ", ".join(weights_id[:16] for weights_id in weights[:5])


def _wanted(pattern_set: PatternSet) -> dict[str, int]:
    """How many neighbours of which pattern the decision needs."""
    most = pattern_set.document.neighbours
    return {member.pattern_id: min(most, member.exemplars) for member in pattern_set.recognisable}


def _exemplars(pattern_set: PatternSet) -> int:
    return sum(member.exemplars for member in pattern_set.recognisable)


def _check_weights(set_id: str, pattern_set: PatternSet, weights_id: str) -> None:
    if pattern_set.weights_id != weights_id:
        raise InvalidInput(
            f"pattern set {set_id} belongs to weights {pattern_set.weights_id}, not to {weights_id}",
            reason="WEIGHTS_MISMATCH",
        )
