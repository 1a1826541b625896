"""Rubbish of a store besides patterns: packs that nothing refers to, halves of packs, staging areas and source marks.

What lies in a store is a value, and what of it may go is another, which ``plan`` makes of it; ``sweep.py`` looks and
deletes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from premoe_runtime.formats.errors import Conflict
from premoe_runtime.storage import ObjectInfo

Kind = Literal["pack", "half of a pack", "staging area", "source mark", "unfinished file"]


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
