"""What the watches and our own writes have shown of the cluster. Knows no I/O.

Newer versions win, whichever way they arrive; a removal is remembered for a while, so that the late answer of a write
does not bring a deleted object back.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict

from premoe_operator.api.names import LABEL_MODEL
from premoe_operator.kube.claims import claim_of
from premoe_operator.kube.cluster import Listed
from premoe_operator.kube.compact import compact
from premoe_operator.kube.kinds import PRUNED_MODEL, Kind
from premoe_operator.kube.objects import Json, ModelKey, ObjectKey, controller_of, key_of, version_of

TOMBSTONES = 4096


class Cache:
    """PrunedModels and their children."""

    def __init__(self) -> None:
        self._objects: dict[ObjectKey, Json] = {}
        self._children: defaultdict[ModelKey, set[ObjectKey]] = defaultdict(set)
        self._served: defaultdict[str, set[ModelKey]] = defaultdict(set)
        self._claiming: defaultdict[str, set[ModelKey]] = defaultdict(set)
        """PrunedModels with tasks by the id of their pack."""
        self._latest: dict[Kind, Json] = {}
        """The object of each kind that came last: the next one resembles it."""
        self._removed: OrderedDict[ObjectKey, int] = OrderedDict()

    def put(self, obj: Json) -> set[ModelKey]:
        """Take a version in. Returns the PrunedModels it concerns; none when it is not newer than what is known."""
        key = key_of(obj)
        known = self._objects.get(key)
        version = version_of(obj)
        if known is not None and version <= version_of(known):
            return set()
        # Equal to a removal: a label was stripped, so the watch lost the object, and a read then found it.
        if known is None and version < self._removed.get(key, 0):
            return set()
        concerned = self._unlink(key)
        self._removed.pop(key, None)
        self._latest[key.kind] = self._objects[key] = compact(obj, known or self._latest.get(key.kind))
        concerned |= self._link(key)
        if key.kind is PRUNED_MODEL and claim_of(known) != claim_of(obj):
            concerned |= self._sharing(known) | self._sharing(obj)
        return concerned

    def remove(self, key: ObjectKey, version: int) -> set[ModelKey]:
        """Take a removal at ``version`` in. Returns the PrunedModels it concerns."""
        known = self._objects.get(key)
        if known is not None and version_of(known) > version:
            return set()
        self._removed[key] = max(version, self._removed.get(key, 0))
        self._removed.move_to_end(key)
        while len(self._removed) > TOMBSTONES:
            self._removed.popitem(last=False)
        return self.forget(key)

    def forget(self, key: ObjectKey) -> set[ModelKey]:
        """Drop what is known, without a claim that the object is gone. Returns the PrunedModels it concerns."""
        concerned = self._unlink(key)
        gone = self._objects.pop(key, None)
        return concerned | (self._sharing(gone) if key.kind is PRUNED_MODEL else set())

    def get(self, key: ObjectKey) -> Json | None:
        return self._objects.get(key)

    def model(self, model: ModelKey) -> Json | None:
        return self._objects.get(ObjectKey(PRUNED_MODEL, *model))

    def models(self) -> list[Json]:
        return [obj for key, obj in self._objects.items() if key.kind is PRUNED_MODEL]

    def children(self, model: ModelKey) -> dict[ObjectKey, Json]:
        return {key: self._objects[key] for key in self._children.get(model, ())}

    def rivals(self, model: ModelKey) -> list[Json]:
        """Other PrunedModels with the same served name."""
        own = self.model(model)
        if own is None:
            return []
        return self._models(self._served.get(served_name(own), set()) - {model})

    def same_weights(self, model: ModelKey) -> list[Json]:
        """Other PrunedModels with tasks over the same pack; none for one without tasks, or before its pack is known."""
        return self._models(self._sharing(self.model(model)) - {model})

    def _models(self, keys: set[ModelKey]) -> list[Json]:
        return [self._objects[ObjectKey(PRUNED_MODEL, *key)] for key in sorted(keys)]

    def _sharing(self, model: Json | None) -> set[ModelKey]:
        """PrunedModels with tasks over the pack of this one, which has tasks too."""
        claim = claim_of(model)
        return set() if claim is None else set(self._claiming.get(claim.model_id, ()))

    def replace(self, kind: Kind, namespace: str | None, listed: Listed) -> set[ModelKey]:
        """Take a full list in. Returns the PrunedModels for which something was news."""
        concerned: set[ModelKey] = set()
        present = {key_of(obj) for obj in listed.items}
        for obj in listed.items:
            concerned |= self.put(obj)
        for key, obj in list(self._objects.items()):
            in_scope = key.kind is kind and namespace in (None, key.namespace)
            # What is newer than the list was created after it.
            if in_scope and key not in present and version_of(obj) <= listed.version:
                concerned |= self.forget(key)
        return concerned

    def _link(self, key: ObjectKey) -> set[ModelKey]:
        obj = self._objects[key]
        models = models_of(obj)
        if key.kind is not PRUNED_MODEL:
            for model in models:
                self._children[model].add(key)
            return models
        claim = claim_of(obj)
        if claim is not None:
            self._claiming[claim.model_id] |= models
        sharing = self._served[served_name(obj)]
        sharing |= models
        return set(sharing)

    def _unlink(self, key: ObjectKey) -> set[ModelKey]:
        obj = self._objects.get(key)
        if obj is None:
            return set()
        models = models_of(obj)
        if key.kind is PRUNED_MODEL:
            sharing = self._served[served_name(obj)]
            concerned = models | sharing
            sharing -= models
            if not sharing:
                del self._served[served_name(obj)]
            self._unclaim(obj, models)
            return concerned
        for model in models:
            self._children[model].discard(key)
            if not self._children[model]:
                del self._children[model]
        return models

    def _unclaim(self, model: Json, keys: set[ModelKey]) -> None:
        claim = claim_of(model)
        if claim is None:
            return
        self._claiming[claim.model_id] -= keys
        if not self._claiming[claim.model_id]:
            del self._claiming[claim.model_id]


def served_name(model: Json) -> str:
    """The name that clients ask for."""
    return str(model.get("spec", {}).get("model", {}).get("servedName") or model["metadata"]["name"])


def models_of(obj: Json) -> set[ModelKey]:
    """The PrunedModels that an object concerns: itself, the one its label names, the one that controls it."""
    key = key_of(obj)
    if key.kind is PRUNED_MODEL:
        return {ModelKey(key.namespace, key.name)}
    names = {(obj["metadata"].get("labels") or {}).get(LABEL_MODEL)}
    controller = controller_of(obj)
    if controller is not None and controller.get("kind") == PRUNED_MODEL.name:
        names.add(controller.get("name"))
    return {ModelKey(key.namespace, name) for name in names if name}
