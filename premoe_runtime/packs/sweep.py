"""Sweeping a store: look, decide (``rubbish.plan``), delete.

Others may pack and publish meanwhile: what was written lately stays, a local staging area is deleted under its lock,
and before every pack, and once more when its manifest is gone, everything is looked at again. The manifest goes first,
so that a pack that was deleted in part looks whole to nobody; the next run takes the rest of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import groupby

from premoe_runtime.formats.errors import Conflict, CorruptData, InvalidInput, NotFound
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.packs.place import MANIFEST_FILE, MODELS_FOLDER, pack_folder
from premoe_runtime.packs.rubbish import Folder, Mark, Plan, References, Rubbish, StoredPack, Survey, plan
from premoe_runtime.packs.staging import MARKS_FOLDER, STAGING_FOLDER, Staging
from premoe_runtime.storage import ObjectInfo, Store

_WRITTEN = (MODELS_FOLDER, MARKS_FOLDER, "live", "sets", "patterns", "profiles")
"""Folders in which a killed writer may have left a file that no listing shows."""


class Surveyor:
    """Looks at a store again and again, and reads a pack's manifest and a mark anew only when they have changed.

    Locks are tried only of staging areas last written ``before``. Raises what the store raises.
    """

    def __init__(self, store: Store, before: float) -> None:
        self._store = store
        self._before = before
        self._packs: dict[Folder, StoredPack] = {}
        self._marks: dict[ObjectInfo, Mark] = {}

    def survey(self) -> Survey:
        store = self._store
        staged = tuple(_folders([*store.list(STAGING_FOLDER), *store.unfinished(STAGING_FOLDER)]))
        idle = (one.name for one in staged if one.modified < self._before)
        packs = tuple(self._pack(folder) for folder in _folders(store.list(MODELS_FOLDER)))
        marks = tuple(self._mark(info) for info in store.list(MARKS_FOLDER) if info.path.endswith(".json"))
        busy = frozenset(name for name in idle if Staging(store, name).is_locked())
        return Survey(packs, staged, marks, busy, tuple(info for root in _WRITTEN for info in store.unfinished(root)))

    def _pack(self, folder: Folder) -> StoredPack:
        if folder not in self._packs:
            self._packs[folder] = _pack(self._store, folder)
        return self._packs[folder]

    def _mark(self, info: ObjectInfo) -> Mark:
        if info not in self._marks:
            self._marks[info] = _mark(self._store, info)
        return self._marks[info]


class Sweep:
    """One store; ``references`` says who needs packs, as of now. Methods raise what that and the store raise."""

    def __init__(self, store: Store, references: Callable[[], References], *, before: float, packs: bool) -> None:
        self._store = store
        self._references = references
        self._before = before
        self._packs = packs
        self._surveyor = Surveyor(store, before)

    def find(self) -> Plan:
        return plan(self._surveyor.survey(), self._references(), before=self._before, packs=self._packs)

    def remove(self, found: Iterable[Rubbish], advance: Callable[[int], None] = lambda size: None) -> Iterator[Rubbish]:
        """Delete what ``find`` found and still is rubbish; yields each once it is gone.

        ``advance`` is told the bytes of every object. Stopped in between: start anew.
        """
        for one in found:
            gone = {
                "pack": self._take_pack,
                "half of a pack": self._take_pack,
                "staging area": self._take_staging,
                "source mark": self._take_mark,
                "unfinished file": self._take_file,
            }[one.kind](one, advance)
            if gone:
                yield one

    def _take_pack(self, one: Rubbish, advance: Callable[[int], None]) -> bool:
        if (one.kind, one.path) not in {(other.kind, other.path) for other in self.find().rubbish}:
            return False
        objects = self._store.list(one.path)
        if any(info.modified >= self._before for info in objects):
            return False
        if one.kind == "pack" and not self._take_manifest(one):
            return False
        for info in objects:
            self._store.delete(info.path)
            advance(info.size)
        if not self._store.list(one.path):  # folders of a local store
            self._store.delete_prefix(one.path)
        return True

    def _take_manifest(self, one: Rubbish) -> bool:
        """Delete it; False where somebody else did, or has just come to need the pack, which then is whole again."""
        path = f"{one.path}/{MANIFEST_FILE}"
        try:
            manifest = self._store.get(path)
        except NotFound:
            return False
        self._store.delete(path)
        if self._references().of(_described(Folder(one.path, one.size, one.modified), manifest)):
            self._store.put(path, manifest)
            return False
        return True

    def _take_staging(self, one: Rubbish, advance: Callable[[int], None]) -> bool:
        staging = Staging(self._store, one.path.rpartition("/")[2])
        with suppress(Conflict), staging.locked():
            objects = self._store.list(one.path)
            if all(info.modified < self._before for info in objects):
                for info in objects:
                    self._store.delete(info.path)
                    advance(info.size)
                staging.clear()
                return True
        return False

    def _take_mark(self, one: Rubbish, advance: Callable[[int], None]) -> bool:
        with suppress(NotFound):
            if self._store.head(one.path).modified >= self._before:
                return False
            model_id = _mark(self._store, self._store.head(one.path)).model_id
            if model_id and self._store.exists(f"{pack_folder(model_id)}/{MANIFEST_FILE}"):
                return False
        self._store.delete(one.path)
        advance(one.size)
        return True

    def _take_file(self, one: Rubbish, advance: Callable[[int], None]) -> bool:
        if one.path not in {info.path for info in self._store.unfinished(one.path.rpartition("/")[0])}:
            return False
        self._store.delete(one.path)
        advance(one.size)
        return True


def _folders(found: Iterable[ObjectInfo]) -> Iterator[Folder]:
    """The folders, two levels down, that hold anything, by name."""
    by_path = sorted(found, key=lambda info: info.path)
    for path, group in groupby(by_path, lambda info: "/".join(info.path.split("/")[:2])):
        objects = list(group)
        if any(info.path != path for info in objects):
            size, modified = sum(info.size for info in objects), max(info.modified for info in objects)
            yield Folder(path, size, modified)


def _pack(store: Store, folder: Folder) -> StoredPack:
    try:
        return _described(folder, store.get(f"{folder.path}/{MANIFEST_FILE}"))
    except NotFound:
        return StoredPack(folder, has_manifest=False)


def _described(folder: Folder, manifest: bytes) -> StoredPack:
    try:
        found = Manifest.parse(manifest, where=folder.path)
    except (CorruptData, InvalidInput):
        return StoredPack(folder, has_manifest=True)
    return StoredPack(folder, True, found.model_id, found.weights_id)


def _mark(store: Store, info: ObjectInfo) -> Mark:
    key = info.path.rpartition("/")[2].removesuffix(".json")
    return Mark(info.path, info.size, info.modified, Staging(store, key).marked())
