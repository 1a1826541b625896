"""What a reconcile decides on: the model, its children, and what no watch shows of pods, events, store and workers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection
from typing import Protocol, TypeAlias

from premoe_operator.api.names import LABEL_MODEL
from premoe_operator.api.release import Release
from premoe_operator.decide.observed import Needs, Observed, PackFacts, StoreFailure, WorkerPreload, WorkersAsked
from premoe_operator.decide.pods import waits_for_containers
from premoe_operator.decide.situation import needs
from premoe_operator.kube.cache import Cache
from premoe_operator.kube.cluster import ApiFailure, Cluster
from premoe_operator.kube.kinds import CONFIG_MAP, CORE_EVENT, POD, Kind
from premoe_operator.kube.objects import Json, ModelKey, ObjectKey, ownership, uid_of

PODS_ASKED_FOR_EVENTS = 3

Preloads: TypeAlias = Callable[[ModelKey, WorkersAsked | None], tuple[WorkerPreload, ...] | None]
"""What a model's workers said last of what they keep resident; see ``PreloadWatch.look``."""


class ExpertStore(Protocol):
    """The expert store, asked for manifests only."""

    async def facts(self, address: str, model_id: str) -> PackFacts | StoreFailure: ...


class Observer:
    """For one event loop; reads through the cache, and past it where the watches show nothing."""

    def __init__(
        self,
        cluster: Cluster,
        store: ExpertStore,
        preloads: Preloads,
        cache: Cache,
        release: Release,
        unwatched: Collection[Kind],
    ) -> None:
        self._cluster = cluster
        self._store = store
        self._preloads = preloads
        self._cache = cache
        self._release = release
        self._unwatched = unwatched
        self._unlabelled: defaultdict[ModelKey, set[ObjectKey]] = defaultdict(set)
        """Objects with a child's name that the watches do not show, because they lack our label."""

    def forget(self, key: ModelKey) -> None:
        """The model is gone, or another's: nobody is asked about it any more."""
        self._unlabelled.pop(key, None)
        self._preloads(key, None)

    async def observe(self, key: ModelKey) -> Observed | None:
        model = self._cache.model(key)
        if model is None:
            return None
        await self._look_at_unlabelled(key, model)
        wanted = needs(model, self.children(key), self._release)
        if wanted.certificate is not None and wanted.certificate.kind in self._unwatched:
            try:
                await self.look_at(key, wanted.certificate)
            except ApiFailure as failure:
                if failure.code != 403:  # without the right to read there is none to write: that is said then
                    raise
        pods = await self._pods(key) if wanted.pods else None
        return Observed(
            model=model,
            children=self.children(key),
            pods=pods,
            events=await self._events(key.namespace, pods or (), wanted),
            store=await self._facts(wanted),
            missing_sources=await self._missing_sources(key.namespace, wanted),
            rivals=tuple(self._cache.rivals(key)),
            same_weights=tuple(self._cache.same_weights(key)),
            preloads=self._preloads(key, wanted.workers),
        )

    def children(self, key: ModelKey) -> dict[ObjectKey, Json]:
        children = self._cache.children(key)
        for other in self._unlabelled.get(key, ()):
            found = self._cache.get(other)
            if found is not None:
                children[other] = found
        return children

    async def _look_at_unlabelled(self, key: ModelKey, model: Json) -> None:
        """Read again what no watch shows; leave to the watches what has our label again."""
        for other in list(self._unlabelled.get(key, ())):
            found = await self.look_at(key, other)
            if found is None or (ownership(found, model) == "ours" and other in self._cache.children(key)):
                self._unlabelled[key].discard(other)

    async def look_at(self, key: ModelKey, other: ObjectKey) -> Json | None:
        """Read one object past the watches."""
        found = await self._cluster.get(other.kind, other.namespace, other.name)
        if found is None:
            self._cache.forget(other)
            return None
        self._cache.put(found)
        self._unlabelled[key].add(other)
        return found

    async def _pods(self, key: ModelKey) -> tuple[Json, ...]:
        listed = await self._cluster.list(POD, key.namespace, label_selector=f"{LABEL_MODEL}={key.name}")
        return listed.items

    async def _events(self, namespace: str, pods: tuple[Json, ...], wanted: Needs) -> tuple[Json, ...]:
        stuck = [pod for pod in pods if waits_for_containers(pod)][:PODS_ASKED_FOR_EVENTS]
        found: list[Json] = []
        for obj in (*stuck, *(wanted.events_of if not pods else ())):
            selector = f"involvedObject.uid={uid_of(obj)},type=Warning"
            found += (await self._cluster.list(CORE_EVENT, namespace, field_selector=selector)).items
        return tuple(found)

    async def _facts(self, wanted: Needs) -> PackFacts | StoreFailure | None:
        if not wanted.manifest_of:
            return None
        return await self._store.facts(wanted.store_address, wanted.manifest_of)

    async def _missing_sources(self, namespace: str, wanted: Needs) -> tuple[str, ...]:
        missing: list[str] = []
        for name, key in wanted.sources:
            found = await self._cluster.get(CONFIG_MAP, namespace, name)
            if found is None:
                missing.append(f"ConfigMap {name} with calibration data does not exist")
            elif key not in (found.get("data") or {}) and key not in (found.get("binaryData") or {}):
                missing.append(f"ConfigMap {name} has no key {key}")
        return tuple(missing)
