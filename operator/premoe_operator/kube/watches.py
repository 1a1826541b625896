"""kopf as informer: every event of our kinds goes into the cache, and what it concerns into the queue. No logic.

Only ``on.event`` handlers: they write nothing to the objects, so there is neither a finalizer nor an annotation of
kopf's. They are not retried; the queue does that.

kopf shows its handlers no bookmarks and no relists, so both are seen where its answers come in: a watch that is silent
past the API server's bookmarks is stale, and a list after the first one means that events may have been missed.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from types import AsyncGeneratorType
from typing import Any, Self
from weakref import WeakValueDictionary

import aiohttp
import kopf

from premoe_operator.api.names import LABEL_MODEL
from premoe_operator.kube.cache import Cache
from premoe_operator.kube.connection import Connection
from premoe_operator.kube.kinds import PRUNED_MODEL, Kind
from premoe_operator.kube.objects import Json, ModelKey, key_of, version_of


class WatchClock:
    """When each watch, named by its URL path, last had something to say.

    A watch counts from the moment when it is expected: one that hangs before its first word is as dead as any other.
    """

    def __init__(self, on_list: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._on_list = on_list
        self._clock = clock
        self._heard: dict[str, float] = {}

    def expect(self, paths: Iterable[str]) -> None:
        for path in paths:
            self.heard(path)

    def heard(self, path: str) -> None:
        self._heard[path] = self._clock()

    def listed(self, path: str) -> None:
        """A list, or a page of one, has come in: what comes before a watch opens."""
        if path in self._heard:
            self.heard(path)
        self._on_list(path)

    def ages_s(self) -> dict[str, float]:
        now = self._clock()
        return {path: now - when for path, when in self._heard.items()}


async def kopf_session(connection: Connection, clock: WatchClock) -> kopf.AiohttpSession:
    """A session for kopf. kopf asks for a new one when the API answers 401, so a rotated token is read then."""
    session = connection.watch_session(await connection.token(), _response_class(clock))
    return kopf.AiohttpSession(server=connection.configuration.host, aiohttp_session=session)


def _response_class(clock: WatchClock) -> type[aiohttp.ClientResponse]:
    class HeardResponse(aiohttp.ClientResponse):
        async def start(self, connection: Any) -> Self:
            await super().start(connection)
            path = self.url.path
            if self.status == 200 and self.url.query.get("watch") == "true":
                clock.heard(path)
                self.content = _HeardStream(self.content, lambda: clock.heard(path))  # type: ignore[assignment]
            elif self.status == 200 and self.method == "GET":
                clock.listed(path)
            return self

    return HeardResponse


class _HeardStream:
    """A stream that says when something arrives."""

    def __init__(self, stream: aiohttp.StreamReader, heard: Callable[[], None]) -> None:
        self._stream = stream
        self._heard = heard

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        async for data in self._stream.iter_chunked(size):
            self._heard()
            yield data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


Concern = Callable[[Iterable[ModelKey]], None]


def build_registry(
    kinds: Iterable[Kind], cache: Cache, concern: Concern, login: Callable[[], Awaitable[kopf.AiohttpSession]]
) -> kopf.OperatorRegistry:
    """Handlers for PrunedModels and the given kinds of children. ``concern`` is told what to look at."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def _login(**_: Any) -> kopf.AiohttpSession:
        return await login()

    for kind in (PRUNED_MODEL, *kinds):
        _watch(registry, kind, cache, concern)
    return registry


def _watch(registry: kopf.OperatorRegistry, kind: Kind, cache: Cache, concern: Concern) -> None:
    @kopf.on.event(*_selector(kind), registry=registry, id=kind.plural)
    async def _on_event(event: Any, **_: Any) -> None:
        obj: Json = {"apiVersion": kind.api_version, "kind": kind.name, **event["object"]}
        if event["type"] == "DELETED":
            concern(cache.remove(key_of(obj), version_of(obj)))
        else:
            concern(cache.put(obj))


@asynccontextmanager
async def closing_generators(of: str = "kopf.") -> AsyncIterator[None]:
    """At the end, close what modules with that prefix left open of async generators begun meanwhile, outer ones first.

    kopf leaves a watch's open when it is stopped between two events. The event loop would close them in any order, and
    an outer one whose inner one is closed already ends with a traceback in the log.
    """
    begun: WeakValueDictionary[int, AsyncGenerator[Any, Any]] = WeakValueDictionary()
    order = itertools.count()
    hook = sys.get_asyncgen_hooks().firstiter

    def note(generator: AsyncGenerator[Any, Any]) -> None:
        frame = generator.ag_frame if isinstance(generator, AsyncGeneratorType) else None
        if frame is not None and frame.f_globals["__name__"].startswith(of):
            begun[next(order)] = generator
        if hook is not None:
            hook(generator)

    sys.set_asyncgen_hooks(firstiter=note)
    try:
        yield
    finally:
        sys.set_asyncgen_hooks(firstiter=hook)
        for generator in list(begun.values()):
            await generator.aclose()


def _selector(kind: Kind) -> tuple[str, str, str] | tuple[str, str]:
    return (kind.group, kind.version, kind.plural) if kind.group else (kind.version, kind.plural)


def configure(settings: kopf.OperatorSettings, kinds: Iterable[Kind], *, inactivity_s: float) -> None:
    """Watch only children with our label, write nothing, and find kinds at the start only."""
    for kind in kinds:
        settings.watching.label_selectors[_selector(kind)] = LABEL_MODEL
    settings.watching.inactivity_timeout = inactivity_s
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.networking.error_backoffs = [0.5, 1, 2, 5, 10]
