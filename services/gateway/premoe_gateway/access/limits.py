"""What each key has used, and whether it may ask for more. Of one gateway process: several replicas count apart."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from premoe_gateway.access.buckets import Bucket
from premoe_gateway.access.keys import Key
from premoe_gateway.usage import Usage
from premoe_runtime.formats.errors import Exhausted

_BUSY_S = 1.0
"""Nobody knows when a running answer ends."""


class Limited(Exhausted):
    """A key has used up what it may. ``retry_after_s``: when to ask again."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message, reason="RATE_LIMIT_EXCEEDED")
        self.retry_after_s = retry_after_s


@dataclass(slots=True)
class _Used:
    requests: Bucket = field(default_factory=Bucket)
    tokens: Bucket = field(default_factory=Bucket)
    running: int = 0


class Limits:
    """Use from one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._used: defaultdict[str, _Used] = defaultdict(_Used)

    @contextmanager
    def request(self, key: Key, usage: Usage) -> Iterator[None]:
        """One request of the key, which spends ``usage`` by its end. Raises Limited before it begins."""
        used, now = self._used[key.name], self._clock()
        self._check(key, used, now)
        if key.requests_per_minute is not None:
            used.requests = used.requests.plus(1, now, key.requests_per_minute)
        used.running += 1
        try:
            yield
        finally:
            used.running -= 1
            if key.tokens_per_minute is not None:
                used.tokens = used.tokens.plus(usage.total_tokens, self._clock(), key.tokens_per_minute)

    @contextmanager
    def more(self, key: Key, answers: int) -> Iterator[int]:
        """What one request of the key becomes that is so many answers: pays for all of them, like tokens, though there
        may be no room, and gives the number that may run at a time, 1 at least.
        """
        used, further = self._used[key.name], answers - 1
        if key.requests_per_minute is not None:
            used.requests = used.requests.plus(further, self._clock(), key.requests_per_minute)
        if key.concurrent is not None:
            further = min(further, max(0, key.concurrent - used.running))
        used.running += further
        try:
            yield 1 + further
        finally:
            used.running -= further

    @staticmethod
    def _check(key: Key, used: _Used, now: float) -> None:
        if key.concurrent is not None and used.running >= key.concurrent:
            raise Limited(f"this key may have {key.concurrent} requests at a time, and has them", _BUSY_S)
        for limit, bucket, what in (
            (key.requests_per_minute, used.requests, "requests"),
            (key.tokens_per_minute, used.tokens, "tokens"),
        ):
            if limit is not None and (wait_s := bucket.wait_s(now, limit)):
                raise Limited(f"this key may use {limit} {what} a minute, and has used them", wait_s)
