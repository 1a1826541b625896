"""kopf as informer: every event of our kinds goes into the cache, and what it concerns into the queue. No logic.

Only ``on.event`` handlers: they write nothing to the objects, so there is neither a finalizer nor an annotation of
kopf's. They are not retried; the queue does that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import kopf

from premoe_operator.children import LABEL_MODEL
from premoe_operator.kube.cache import Cache
from premoe_operator.kube.kinds import PRUNED_MODEL, Kind
from premoe_operator.kube.objects import Json, ModelKey, key_of, version_of

Concern = Callable[[Iterable[ModelKey]], None]


def build_registry(
    kinds: Iterable[Kind], cache: Cache, concern: Concern, login: Callable[[], kopf.AiohttpSession]
) -> kopf.OperatorRegistry:
    """Handlers for PrunedModels and the given kinds of children. ``concern`` is told what to look at."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def _login(**_: Any) -> kopf.AiohttpSession:
        return login()

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
