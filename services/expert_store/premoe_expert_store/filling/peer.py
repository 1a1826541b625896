"""The replica that a blob belongs to: without Redis it reads object storage once for all of them."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from premoe_dataplane.plan import BlobPlan, Source
from premoe_dataplane.stopped import Stopped
from premoe_dataplane.transports.base import Part, Transport

from premoe_expert_store.catalogue import Pack
from premoe_expert_store.filling.arrival import Arrival
from premoe_runtime.formats.errors import CorruptData, PremoeError
from premoe_runtime.formats.ids import ExpertId

COOL_DOWN_S = 5.0

log = logging.getLogger(__name__)

HomeUrl = Callable[[Pack, ExpertId], str | None]
"""A signed address of a blob at its home, which says that a replica asks; None where this one is its home."""


class PeerTier:
    """Reads from homes over HTTP. One that fails is left alone for a while. Belongs to one event loop."""

    def __init__(
        self,
        home: HomeUrl,
        transport: Transport,
        threads: int,
        *,
        cool_down_s: float = COOL_DOWN_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._home = home
        self._transport = transport
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="peers")
        self._cool_down_s = cool_down_s
        self._clock = clock
        self._closed: dict[str, float] = {}

    def url(self, arrival: Arrival) -> str | None:
        """Where to ask; None where nobody is to be asked."""
        if arrival.alone.is_set():
            return None
        url = self._home(arrival.pack, arrival.expert)
        if url is None or self._clock() < self._closed.get(urlsplit(url).netloc, 0.0):
            return None
        return url

    async def read(self, arrival: Arrival, url: str) -> bool:
        """Land what comes of the missing pieces. Whether none of them was wrong; raises nothing for what fails.

        Ends early when the home asks us for this very blob: each believes the other to be its home then.
        """
        loop, given_up = asyncio.get_running_loop(), threading.Event()
        whole = BlobPlan(arrival.expert, arrival.digest, arrival.num_bytes, (), arrival.sums)
        part = Part(whole, Source("http", "node", url), arrival.room.view, tuple(arrival.landing.missing))

        def landed(part: Part, index: int) -> None:
            right, _ = arrival.sort_out([index])
            if not right:
                raise CorruptData(f"piece {index} is wrong", reason="CHECK_MISMATCH")
            loop.call_soon_threadsafe(arrival.land, right, "peer")

        def read() -> PremoeError | None:
            try:
                self._transport.read([part], landed, lambda: given_up.is_set() or arrival.alone.is_set())
            except Stopped:
                return None
            except PremoeError as error:
                return error
            return None

        future = loop.run_in_executor(self._threads, read)
        try:
            error = await asyncio.shield(future)
        except asyncio.CancelledError:
            given_up.set()
            await asyncio.wait([future])
            raise
        return self._judged(url, error)

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._transport.close()

    def _judged(self, url: str, error: PremoeError | None) -> bool:
        if error is None:
            return True
        where = urlsplit(url).netloc
        self._closed[where] = self._clock() + self._cool_down_s
        log.warning("replica %s is not asked for %.0f s: %s", where, self._cool_down_s, error)
        return not isinstance(error, CorruptData)
