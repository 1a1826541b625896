"""Pattern sets, patterns and live pointers in object storage: the truth, of which the index is a copy."""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from premoe_servicekit.faults import storage_fault

from premoe_runtime.formats.errors import CorruptData, InvalidInput, NotFound, PremoeError
from premoe_runtime.formats.live import LIVE_FOLDER, LivePointer, go_live
from premoe_runtime.formats.pattern import Pattern, pattern_path
from premoe_runtime.formats.pattern_set import PatternSet
from premoe_runtime.packs.weights import PackedWeights, packed_weights
from premoe_runtime.storage import Store

CACHED_SETS = 32
CACHED_PATTERNS = 256
V = TypeVar("V")

_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,127}")


class PatternRepository:
    """Reads are cached: sets and patterns for good (they are immutable), live pointers for ``live_refresh_s``.

    All methods raise NotFound, CorruptData, Unavailable, and InvalidInput for what can be no id.
    """

    def __init__(self, store: Store, *, live_refresh_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._live_refresh_s = live_refresh_s
        self._clock = clock
        self._sets: OrderedDict[str, PatternSet] = OrderedDict()
        self._patterns: OrderedDict[str, Pattern] = OrderedDict()
        self._live: dict[str, tuple[str, float]] = {}
        self._packs: dict[str, str] = {}

    async def pattern_set(self, set_id: str) -> PatternSet:
        found = self._sets.get(checked(set_id, "set id"))
        if found is None:
            missing = NotFound(
                f"there is no pattern set {set_id}; build it with premoe patterns build", reason="SET_NOT_FOUND"
            )
            found = await _read(lambda: PatternSet.load(self._store.get, set_id), f"pattern set {set_id}", missing)
            _remember(self._sets, set_id, found, CACHED_SETS)
        return found

    async def pattern(self, pattern_id: str) -> Pattern:
        found = self._patterns.get(checked(pattern_id, "pattern id"))
        if found is None:
            missing = NotFound(f"there is no pattern {pattern_id}", reason="PATTERN_NOT_FOUND")
            found = await _read(lambda: Pattern.load(self._store.get, pattern_id), f"pattern {pattern_id}", missing)
            _remember(self._patterns, pattern_id, found, CACHED_PATTERNS)
        return found

    async def has_pattern(self, pattern_id: str) -> bool:
        return await asyncio.to_thread(self._store.exists, pattern_path(checked(pattern_id, "pattern id")))

    async def live(self, weights_id: str, *, fresh: bool = False) -> str:
        """The live set of these weights. Raises NotFound (NO_LIVE_SET)."""
        known = self._live.get(checked(weights_id, "weights id"))
        if known is not None and not fresh and self._clock() < known[1] + self._live_refresh_s:
            return known[0]
        missing = NotFound(
            f"no pattern set is live for weights {weights_id}; publish one and set it live", reason="NO_LIVE_SET"
        )
        what = f"the live pointer of weights {weights_id}"
        set_id = await _read(lambda: LivePointer.load(self._store.get, weights_id).set_id, what, missing)
        self._live[weights_id] = (set_id, self._clock())
        return set_id

    async def set_live(self, weights_id: str, set_id: str) -> str:
        """Switch the pointer: one atomic write. Returns the set that was live before, or ""."""
        store, weights_id = self._store, checked(weights_id, "weights id")
        before = await asyncio.to_thread(go_live, store.get, store.put, weights_id, set_id, time.time())
        self._live[weights_id] = (set_id, self._clock())
        return before or ""

    async def live_weights(self) -> tuple[str, ...]:
        """All weights that have a live set."""
        names = await asyncio.to_thread(self._store.list_names, LIVE_FOLDER)
        return tuple(name.removesuffix(".json") for name in names if name.endswith(".json"))

    async def packed_weights(self) -> PackedWeights:
        """Of the packs in the same store."""
        missing = NotFound("the object store is gone", reason="OBJECT_NOT_FOUND")
        found = await _read(lambda: packed_weights(self._store, self._packs), "the packs", missing)
        return replace(found, where="the object store")


def checked(name: str, what: str) -> str:
    """``name`` when it can be part of an object path. Raises InvalidInput."""
    if not _ID.fullmatch(name):
        raise InvalidInput(f"{what} {name[:80]!r} is no id; give the hex digest", reason="ID_INVALID")
    return name


def _remember(cache: OrderedDict[str, V], key: str, value: V, limit: int) -> None:
    cache[key] = value
    while len(cache) > limit:
        cache.popitem(last=False)


async def _read(load: Callable[[], V], what: str, missing: NotFound) -> V:
    try:
        return await asyncio.to_thread(load)
    except NotFound as error:
        raise missing from error
    except CorruptData:
        raise  # said by whoever parses it, who knows no place
    except PremoeError as error:
        raise storage_fault(what, error, "") from error
