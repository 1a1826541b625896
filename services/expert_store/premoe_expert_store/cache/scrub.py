"""A slow look at copies that lie still, so that a wrong one is found before somebody wants it."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable

from premoe_expert_store.cache.node_cache import NodeCache
from premoe_expert_store.cache.whole import digest_of


class Stopped(Exception):
    """The look is over."""


class Pace:
    """No more than ``bytes_s`` on average; one that is stopped lets nobody wait. Safe from several threads."""

    def __init__(self, bytes_s: float) -> None:
        self._bytes_s = bytes_s
        self._stopped = threading.Event()

    def after(self, num_bytes: int) -> None:
        """Wait as long as these bytes take. Raises Stopped."""
        if self._stopped.wait(num_bytes / self._bytes_s):
            raise Stopped

    def stop(self) -> None:
        self._stopped.set()


def look_at_one(cache: NodeCache, pace: Pace, choose: Callable[[list[str]], str] = random.choice) -> str | None:
    """Hold some blob of the node cache against its digest, and drop it when it is wrong; says which one was.

    Blocking. Raises Stopped.
    """
    digests = cache.digests()
    if not digests:
        return None
    digest = choose(digests)
    try:
        fd = os.open(cache.path(digest), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        wrong = digest_of(fd, os.fstat(fd).st_size, pace.after) != digest
    finally:
        os.close(fd)
    if wrong:
        cache.drop(digest)
        return digest
    cache.checked(digest)
    return None
