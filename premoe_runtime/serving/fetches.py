"""Which blobs are on their way into host memory, for whom, and what is tried again. Owned by the serving loop."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from premoe_runtime.formats.errors import Unavailable
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.residency.fetch import Fetcher
from premoe_runtime.residency.host_tier import HostTier

RETRY_SECONDS = (0.1, 0.5, 2.0, 5.0)
"""Waits before a source that is unavailable is asked again; after the last one its error counts."""
PATIENCE_S = 15.0
"""Seconds without one blob after which it is not asked again: a source that is silent has waited long enough itself."""
MAX_FETCHES = 4
"""Fetches at once: several patterns may wait for slow storage."""


@dataclass(eq=False, slots=True)
class Need:
    """Blobs that somebody needs in host memory. ``held`` ones are here and stay until they are copied or given up."""

    experts: frozenset[ExpertId]
    held: set[ExpertId] = field(default_factory=set)
    fetch: Fetch | None = None
    tries: int = 0
    retry_at: float = 0.0
    waiting_ns: int = 0
    """Unix time since when nothing has come for it, in ns; 0 while nothing is asked."""
    delivered: int = 0
    """Blobs that came from the source."""
    fetch_ns: tuple[int, int] = (0, 0)
    """Unix time of the first fetch's start and the last one's end, in ns."""
    ready: bool = False
    """Whether a copy may begin: everything lacking is held, or as much as the tier can take."""
    pinned: bool = False
    """Whether what comes through host memory for it stays there."""


@dataclass(eq=False, slots=True)
class Fetch:
    """One fetch under way. ``places``: where its blobs go."""

    need: Need
    places: dict[ExpertId, int]
    stop: threading.Event = field(default_factory=threading.Event)
    urgent: threading.Event = field(default_factory=threading.Event)
    """Set once a request waits for one of its blobs."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """A blob has arrived and its bytes were checked."""

    fetch: Fetch
    expert: ExpertId
    digest: str


@dataclass(frozen=True, slots=True)
class FetchOver:
    """A fetch has ended, whatever became of it; its places are its owner's again."""

    fetch: Fetch
    error: Exception | None
    start_ns: int
    end_ns: int


def on_a_thread(run: Callable[[], None]) -> None:
    threading.Thread(target=run, name="premoe-fetch", daemon=True).start()


class Fetches:
    """Starts fetches on threads of their own, which tell of it through ``post``; everything else is the owner's thread.

    A fetch that was stopped keeps its places until its thread says that it is over: nobody else may write there.
    """

    def __init__(
        self,
        host: HostTier,
        fetcher: Fetcher,
        post: Callable[[Delivered | FetchOver], None],
        retry_seconds: Sequence[float] = RETRY_SECONDS,
        patience_s: float = PATIENCE_S,
        spawn: Callable[[Callable[[], None]], None] = on_a_thread,
    ) -> None:
        self.host, self._fetcher, self._post, self._spawn = host, fetcher, post, spawn
        self._retry_seconds, self._patience_s = tuple(retry_seconds), patience_s
        self._running: set[Fetch] = set()

    def update(
        self, need: Need, lacking: Iterable[ExpertId], *, first: bool, context: contextvars.Context | None, now: float
    ) -> None:
        """Hold what is here of ``lacking``, fetch what is not, and say whether a copy may begin.

        ``first``: nobody in need is older; it may go on with less than everything when the tier is too small. ``now``
        is monotonic. Without a ``context`` nobody waits for it: it is fetched when nothing else is.
        """
        wanted = list(lacking)
        for expert in wanted:
            if expert in self.host and expert not in need.held:
                self.host.hold(expert)
                need.held.add(expert)
        missing = [e for e in wanted if e not in need.held]
        need.ready = not missing
        if context is not None:
            self._hurry(missing)
        if not missing or need.fetch is not None or now < need.retry_at or len(self._running) >= MAX_FETCHES:
            return
        absent = [e for e in missing if not self.host.is_filling(e)]
        room = self.host.available
        if room < len(absent) and not first:
            return
        if absent and room:
            self._start(need, absent[:room], context)
        elif first and need.held:
            # The tier is full of what this one holds: part by part it goes through.
            need.ready = True

    def let_go(self, need: Need, experts: Iterable[ExpertId] | None = None) -> None:
        """Give up the hold on these blobs, or on all."""
        for expert in list(need.held) if experts is None else experts:
            if expert in need.held:
                need.held.remove(expert)
                self.host.let_go(expert)

    def pin(self, need: Need) -> None:
        """Keep its blobs in host memory until it is dropped. Raises Exhausted when they do not fit."""
        self.host.pin(need.experts)
        need.pinned = True

    def drop(self, need: Need) -> None:
        """Nobody needs it any more: stop its fetch, give up its holds and its pin."""
        self.let_go(need)
        if need.pinned:
            self.host.unpin(need.experts)
            need.pinned = False
        if need.fetch is not None:
            need.fetch.stop.set()
        need.ready, need.tries, need.retry_at, need.waiting_ns = False, 0, 0.0, 0
        need.delivered, need.fetch_ns = 0, (0, 0)

    def arrived(self, message: Delivered, *, wanted: bool) -> None:
        """Take a blob in; it is held if its owner still wants it."""
        fetch, expert = message.fetch, message.expert
        del fetch.places[expert]
        self.host.commit(expert, message.digest)
        if wanted and fetch.need.fetch is fetch and not fetch.stop.is_set():
            self.host.hold(expert)
            fetch.need.held.add(expert)
            fetch.need.delivered += 1
            fetch.need.waiting_ns = time.time_ns()

    def over(self, message: FetchOver, now: float) -> Exception | None:
        """Note the end of a fetch. Returns the error that its owner must fail with, if it is not to be tried again."""
        fetch, need = message.fetch, message.fetch.need
        self._running.discard(fetch)
        for expert in fetch.places:
            self.host.discard(expert)
        if need.fetch is not fetch:
            return None
        need.fetch = None
        if fetch.stop.is_set():
            return None
        need.fetch_ns = (need.fetch_ns[0] or message.start_ns, message.end_ns)
        if message.error is None:
            need.tries, need.retry_at, need.waiting_ns = 0, 0.0, 0
            return None
        waited_s = (message.end_ns - need.waiting_ns) / 1e9
        tried_enough = need.tries >= len(self._retry_seconds) or waited_s >= self._patience_s
        if tried_enough or not isinstance(message.error, Unavailable):
            return message.error
        need.retry_at = now + self._retry_seconds[need.tries]
        need.tries += 1
        return None

    def stop(self) -> None:
        """Stop all fetches; nobody waits for their threads."""
        for fetch in self._running:
            fetch.stop.set()

    def _hurry(self, experts: Iterable[ExpertId]) -> None:
        """Somebody waits for these: what is fetched for nobody yet is, if it has one of them."""
        wanted: frozenset[ExpertId] | None = None
        for fetch in self._running:
            if not fetch.urgent.is_set():
                wanted = frozenset(experts) if wanted is None else wanted
                if not wanted.isdisjoint(fetch.places):
                    fetch.urgent.set()

    def _start(self, need: Need, experts: Sequence[ExpertId], context: contextvars.Context | None) -> None:
        fetch = need.fetch = Fetch(need, {expert: self.host.reserve(expert) for expert in experts})
        if context is None:
            context = contextvars.Context()
        else:
            fetch.urgent.set()
        need.waiting_ns = need.waiting_ns or time.time_ns()
        self._running.add(fetch)
        # Another fetch may run in the request's context at this moment: a copy is entered.
        self._spawn(partial(context.copy().run, self._run, fetch, dict(fetch.places)))

    def _run(self, fetch: Fetch, places: dict[ExpertId, int]) -> None:
        start_ns, error = time.time_ns(), None
        try:
            self._fetcher.fetch(
                places,
                lambda expert, digest: self._post(Delivered(fetch, expert, digest)),
                fetch.stop.is_set,
                fetch.urgent.is_set,
            )
        except Exception as failure:
            error = failure
        self._post(FetchOver(fetch, error, start_ns, time.time_ns()))
