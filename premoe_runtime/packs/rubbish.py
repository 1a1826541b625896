"""Rubbish of a store besides patterns: packs that nothing refers to, halves of packs, staging areas and source marks.

``Survey.of`` looks, ``plan`` decides (pure), ``Sweep`` does both and deletes. Others may pack and publish meanwhile:
what was written lately stays, a local staging area is deleted under its lock, and before every pack, and once more when
its manifest is gone, everything is looked at again. The manifest goes first, so that a pack that was deleted in part
looks whole to nobody; the next run takes the rest of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

from premoe_runtime.formats.errors import Conflict, CorruptData, InvalidInput, NotFound
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.packs.place import MANIFEST_FILE, MODELS_FOLDER, pack_folder
from premoe_runtime.packs.staging import MARKS_FOLDER, STAGING_FOLDER, Staging
from premoe_runtime.storage import ObjectInfo, Store

Kind = Literal["pack", "half of a pack", "staging area", "source mark", "unfinished file"]
_WRITTEN = (MODELS_FOLDER, MARKS_FOLDER, "live", "sets", "patterns", "profiles")
"""Folders in which a killed writer may have left a file that no listing shows."""


@dataclass(frozen=True, slots=True)
class Folder:
    """All objects below ``path``: their bytes, and when the last of them was written, in seconds since 1970."""

    path: str
    size: int
    modified: float

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class StoredPack:
    """``models/<name>``. Without a manifest it is half a pack; ``weights_id`` is empty where none can be read."""

    folder: Folder
    has_manifest: bool
    model_id: str = ""
    weights_id: str = ""

    @property
    def names(self) -> frozenset[str]:
        """The ids that it goes by: of its folder and of its manifest."""
        return frozenset({self.folder.name, self.model_id} - {""})


@dataclass(frozen=True, slots=True)
class Mark:
    """``sources/<key>.json``; ``model_id`` is empty where it cannot be read, and it then counts for nothing."""

    path: str
    size: int
    modified: float
    model_id: str


@dataclass(frozen=True, slots=True)
class References:
    """Who needs packs: ``weights`` by weights id, ``models`` by model id, each with words for who it is."""

    weights: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)

    def of(self, pack: StoredPack) -> str:
        """Who needs a pack; empty: nobody."""
        named = (self.models[name] for name in pack.names if name in self.models)
        return next(named, "") or self.weights.get(pack.weights_id, "")


@dataclass(frozen=True, slots=True)
class Rubbish:
    """What may go: one object, or all objects below ``path``."""

    kind: Kind
    path: str
    size: int
    modified: float


@dataclass(frozen=True, slots=True)
class Kept:
    """A pack that stays, and why."""

    pack: StoredPack
    because: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What may go, in the order in which it is deleted, and the packs that stay."""

    rubbish: tuple[Rubbish, ...]
    kept: tuple[Kept, ...]


@dataclass(frozen=True, slots=True)
class Survey:
    """What lies in a store.

    ``busy`` are the keys of staging areas that a process on this machine has locked, ``unfinished`` what killed writers
    left outside of staging areas.
    """

    packs: tuple[StoredPack, ...]
    staged: tuple[Folder, ...]
    marks: tuple[Mark, ...]
    busy: frozenset[str] = frozenset()
    unfinished: tuple[ObjectInfo, ...] = ()

    @classmethod
    def of(cls, store: Store, before: float) -> Survey:
        """Look; locks are tried only of areas last written ``before``. Raises what the store raises."""
        staged = tuple(_folders([*store.list(STAGING_FOLDER), *store.unfinished(STAGING_FOLDER)]))
        busy = {one.name for one in staged if one.modified < before and Staging(store, one.name).is_locked()}
        packs = tuple(_pack(store, folder) for folder in _folders(store.list(MODELS_FOLDER)))
        unfinished = tuple(info for root in _WRITTEN for info in store.unfinished(root))
        return cls(packs, staged, tuple(_marks(store)), frozenset(busy), unfinished)


def plan(survey: Survey, references: References, *, before: float, packs: bool) -> Plan:
    """Decide what may go: what was last written ``before``; whole packs only with ``packs``.

    A pack is as young as the youngest mark that names it. Raises Conflict (NOTHING_REFERS) where no pack would stay.
    """
    rubbish: list[Rubbish] = []
    kept: list[Kept] = []
    for pack in survey.packs:
        marked = (mark.modified for mark in survey.marks if mark.model_id and mark.model_id in pack.names)
        young = max(pack.folder.modified, *marked, 0.0) >= before
        if pack.has_manifest and (why := _why(pack, references, young=young, packs=packs)):
            kept.append(Kept(pack, why))
        elif not young:
            kind: Kind = "pack" if pack.has_manifest else "half of a pack"
            rubbish.append(Rubbish(kind, pack.folder.path, pack.folder.size, pack.folder.modified))
    num_packs = sum(one.kind == "pack" for one in rubbish)
    if num_packs and not kept:
        raise Conflict(
            f"nothing refers to any of the {num_packs} packs here, and none would be left; name those in use with "
            "--keep or --models",
            reason="NOTHING_REFERS",
        )
    idle = [area for area in survey.staged if area.name not in survey.busy]
    whole = {name for one in kept for name in one.pack.names}
    lost = [mark for mark in survey.marks if mark.model_id not in whole]
    rubbish += (Rubbish("staging area", *place) for area in idle if (place := _old(area, before)))
    rubbish += (Rubbish("source mark", *place) for mark in lost if (place := _old(mark, before)))
    rubbish += (Rubbish("unfinished file", *place) for info in survey.unfinished if (place := _old(info, before)))
    return Plan(tuple(rubbish), tuple(kept))


def _old(one: Folder | Mark | ObjectInfo, before: float) -> tuple[str, int, float] | None:
    return (one.path, one.size, one.modified) if one.modified < before else None


def _why(pack: StoredPack, references: References, *, young: bool, packs: bool) -> str:
    """Why a whole pack stays; empty: it does not."""
    if who := references.of(pack):
        return who
    if not pack.weights_id:
        return "its manifest cannot be read: `premoe pack verify` says why"
    if young:
        return "it is too young"
    return "" if packs else "packs go only with --packs"


class Sweep:
    """One store; ``references`` says who needs packs, as of now. Methods raise what that and the store raise."""

    def __init__(self, store: Store, references: Callable[[], References], *, before: float, packs: bool) -> None:
        self._store = store
        self._references = references
        self._before = before
        self._packs = packs

    def find(self) -> Plan:
        survey = Survey.of(self._store, self._before)
        return plan(survey, self._references(), before=self._before, packs=self._packs)

    def remove(self, found: Sequence[Rubbish], advance: Callable[[int], None] = lambda size: None) -> Iterator[Rubbish]:
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


def _folders(found: Sequence[ObjectInfo]) -> Iterator[Folder]:
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


def _marks(store: Store) -> Iterator[Mark]:
    for info in store.list(MARKS_FOLDER):
        if info.path.endswith(".json"):
            with suppress(NotFound):
                yield _mark(store, info)


def _mark(store: Store, info: ObjectInfo) -> Mark:
    key = info.path.rpartition("/")[2].removesuffix(".json")
    return Mark(info.path, info.size, info.modified, Staging(store, key).marked())
