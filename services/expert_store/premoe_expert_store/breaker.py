"""A cache that never fails a request: errors count as holes, and after one the cache is left alone for a while."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from premoe_dataplane.blob_cache import BlobCache, Wanted

from premoe_runtime.formats.errors import Exhausted, Unavailable
from premoe_runtime.formats.pieces import Hole

T = TypeVar("T")

COOL_DOWN_S = 5.0

log = logging.getLogger(__name__)


class GuardedCache:
    """Implements BlobCache around another one; no method raises. Says once per outage that the cache is down."""

    def __init__(
        self,
        cache: BlobCache,
        *,
        cool_down_s: float = COOL_DOWN_S,
        writes: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``writes``: whether it is filled from here."""
        self._cache = cache
        self._cool_down_s = cool_down_s
        self._writes = writes
        self._clock = clock
        self._lock = threading.Lock()
        self._closed_until = float("-inf")
        self._down = False
        self._full = False

    @property
    def available(self) -> bool:
        """Whether the next call would be passed on."""
        return self._clock() >= self._closed_until

    def read(self, wanted: Sequence[Wanted]) -> list[tuple[Hole, ...]]:
        nothing: list[tuple[Hole, ...]] = [(Hole(0, len(one.into)),) for one in wanted]
        return self._try(lambda: self._cache.read(wanted), nothing)

    def write(self, digest: str, blob: memoryview, holes: Sequence[Hole]) -> None:
        if not self._writes:
            return
        try:
            self._try(lambda: self._cache.write(digest, blob, holes), None)
            self._full = False
        except Exhausted as error:
            if not self._full:
                log.warning("blobs are not cached: %s; allow it to evict (maxmemory-policy allkeys-lfu)", error)
            self._full = True

    def holds(self, digests: Sequence[str], num_bytes: int) -> list[bool]:
        return self._try(lambda: self._cache.holds(digests, num_bytes), [False] * len(digests))

    def forget(self, digest: str, num_bytes: int) -> None:
        self._try(lambda: self._cache.forget(digest, num_bytes), None)

    def close(self) -> None:
        self._cache.close()

    def _try(self, call: Callable[[], T], otherwise: T) -> T:
        if not self.available:
            return otherwise
        try:
            answer = call()
        except Unavailable as error:
            with self._lock:
                self._closed_until = self._clock() + self._cool_down_s
                first, self._down = not self._down, True
            if first:
                log.warning("the cache is skipped: %s", error)
            return otherwise
        with self._lock:
            again, self._down = self._down, False
        if again:
            log.info("the cache answers again")
        return answer
