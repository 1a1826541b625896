"""Rubbish of a store: patterns that no set names, halves of sets, and on request sets that nobody goes back to.

Others may publish meanwhile. What is young is left alone, for a set's patterns are written before the set. And after
every few deletions what is wanted is looked up again, and put back if somebody has just come to want it: who writes a
set or makes one live looks afterwards whether it is whole, so one of the two sees what the other did.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from premoe_runtime.formats import arrays
from premoe_runtime.formats.documents import parse_document
from premoe_runtime.formats.errors import CorruptData, NotFound
from premoe_runtime.formats.live import LIVE_FOLDER, LivePointer, live_path
from premoe_runtime.formats.pattern import pattern_path
from premoe_runtime.formats.pattern_set import SetDocument, set_paths
from premoe_runtime.offline.patterns.library import dates, live_weights
from premoe_runtime.packs.weights import packed_weights
from premoe_runtime.storage import ObjectInfo, Store

TOGETHER = 64
TOGETHER_BYTES = 64 << 20
"""Objects, and their bytes, that are deleted between two looks, and kept in memory so long."""
_ORDER = (LIVE_FOLDER, "sets", "patterns")
"""Who is named goes after who names it."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which rubbish is meant: what was last written ``before``, in seconds since 1970, and nobody names.

    sets   also sets that are not live and were not live before
    stale  also sets and live pointers of weights that no pack has any more
    keep   sets that stay in any case
    """

    before: float
    sets: bool = False
    stale: bool = False
    keep: frozenset[str] = frozenset()


class Sweeper:
    """One store. All methods raise CorruptData where damage hides what is wanted, and then nothing is deleted."""

    def __init__(self, store: Store, choice: Choice) -> None:
        self._store = store
        self._choice = choice
        self._documents: dict[str, SetDocument] = {}

    def find(self) -> list[ObjectInfo]:
        """What may go, in the order in which ``remove`` deletes it."""
        wanted = self._wanted()
        lying = [info for kind in _ORDER for info in self._store.list(kind)]
        return [
            info
            for info in lying
            if info.modified < self._choice.before
            and info.path.endswith((".json", ".safetensors"))
            and info.path not in wanted
        ]

    def remove(self, found: Sequence[ObjectInfo]) -> Iterator[ObjectInfo]:
        """Delete what ``find`` found; yields every object once it is gone for good. Stopped in between: start anew."""
        wanted = self._wanted()
        for some in _together(found):
            held = self._take([info for info in some if info.path not in wanted])
            wanted = self._wanted()
            for info, data in reversed(held):
                if info.path in wanted:
                    self._store.put(info.path, data)
            yield from (info for info, _ in held if info.path not in wanted)

    def _take(self, some: Sequence[ObjectInfo]) -> list[tuple[ObjectInfo, bytes]]:
        held = []
        for info in some:
            with suppress(NotFound):
                if self._store.head(info.path).modified < self._choice.before:  # else it was just written again
                    held.append((info, self._store.get(info.path)))
                    self._store.delete(info.path)
        return held

    def weights(self) -> dict[str, str]:
        """Weights of the sets and live pointers that stay, by weights id, each with one of those in words."""
        live, kept = self._kept()
        of_sets = ((document.weights_id, set_id) for set_id in kept if (document := self._document(set_id)))
        found = {weights_id: f"set {set_id[:16]}" for weights_id, set_id in of_sets}
        return found | dict.fromkeys(live, "its live pointer")

    def _wanted(self) -> set[str]:
        """Paths that must stay, as of now: also of what is missing."""
        weights, kept = self._kept()
        members = (document.members for set_id in kept if (document := self._document(set_id)) is not None)
        return {
            *map(live_path, weights),
            *(path for set_id in kept for path in set_paths(set_id)),
            *(pattern_path(member.pattern_id) for some in members for member in some),
        }

    def _kept(self) -> tuple[list[str], set[str]]:
        """Weights whose live pointers stay, and the sets that do."""
        stale = packed_weights(self._store).lack if self._choice.stale else lambda weights_id: False
        weights = [weights_id for weights_id in live_weights(self._store) if not stale(weights_id)]
        kept = self._remembered(weights) | self._choice.keep
        for set_id, written in dates(self._store, "sets").items():
            document = self._document(set_id)
            old = written < self._choice.before
            if document is not None and not (old and (self._choice.sets or stale(document.weights_id))):
                kept.add(set_id)
        return weights, kept

    def _remembered(self, weights: Sequence[str]) -> set[str]:
        """Sets that are live, and those that were before."""
        found: set[str] = set()
        for weights_id in weights:
            with suppress(NotFound):
                pointer = LivePointer.load(self._store.get, weights_id)
                found |= {version.set_id for version in pointer.history}
        return found

    def _document(self, set_id: str) -> SetDocument | None:
        """Read once, and remembered when it has been deleted; None where it never was there."""
        if set_id not in self._documents:
            path = set_paths(set_id)[0]
            try:
                data = self._store.get(path)
            except NotFound:
                return None
            try:
                if arrays.digest(data) != set_id:
                    raise CorruptData(f"{path}: content does not match its id", reason="PATTERN_SET_INVALID")
                self._documents[set_id] = parse_document(SetDocument, data, where=path, reason="PATTERN_SET_INVALID")
            except CorruptData as error:
                raise CorruptData(
                    f"{error}; nobody can tell which patterns it needs: build it again, or `premoe patterns rm` it",
                    reason=error.reason,
                ) from error
        return self._documents[set_id]


def _together(found: Sequence[ObjectInfo]) -> Iterator[list[ObjectInfo]]:
    some: list[ObjectInfo] = []
    for info in found:
        if some and (len(some) == TOGETHER or sum(each.size for each in some) + info.size > TOGETHER_BYTES):
            yield some
            some = []
        some.append(info)
    if some:
        yield some
