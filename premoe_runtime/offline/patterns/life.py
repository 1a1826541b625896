"""Which set of a store is live: choose another one, roll back, and what was live before."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from premoe_runtime.formats.errors import CorruptData, InvalidInput, NotFound
from premoe_runtime.formats.live import LivePointer, live_path
from premoe_runtime.formats.pattern_set import PatternSet
from premoe_runtime.offline.patterns.library import check_whole, dates, go_live, live_set_id, live_weights, resolve
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.packs.weights import PackedWeights, packed_weights
from premoe_runtime.storage import Store


@dataclass(frozen=True, slots=True)
class Listed:
    """A set that is or was live. ``since``: seconds since 1970, where known; ``stored``: None where it is gone."""

    set_id: str
    state: Literal["live", "earlier", "withdrawn"]
    since: float | None
    stored: PatternSet | None


def set_live(store: Store, name: str, pack: str | None = None) -> PatternSet:
    """Make the set named by the start of its id the live one of its weights.

    ``pack``: URL of the pack that it is for, where that lies in another store. Raises NotFound (the set, or a pattern
    of it), InvalidInput (ambiguous), CorruptData, and Conflict for a set of weights that no pack has.
    """
    found = PatternSet.load(store.get, resolve(store, "sets", name))
    _packed(store, pack).check(found.set_id, found.weights_id)
    _turn(store, found, lambda: go_live(store, found.weights_id, found.set_id))
    return found


def roll_back(
    store: Store, weights: str | None = None, to: str | None = None, pack: str | None = None
) -> tuple[PatternSet, str]:
    """Make the set that was live before, or the earlier one named ``to``, live again; returns it and the one withdrawn.

    ``weights`` and ``to`` are the starts of ids. Raises NotFound (no such set, or none before), InvalidInput
    (ambiguous, or ``to`` is a set of other weights), and what ``set_live`` raises.
    """
    target = None if to is None else PatternSet.load(store.get, resolve(store, "sets", to))
    weights_id = find_weights(store, weights if weights or target is None else target.weights_id)
    if target is not None and target.weights_id != weights_id:
        raise InvalidInput(
            f"set {target.set_id[:16]} belongs to weights {target.weights_id[:16]}, not to {weights_id[:16]}",
            reason="WEIGHTS_MISMATCH",
        )
    before = LivePointer.load(store.get, weights_id)
    after = before.rolled_back(time.time(), None if target is None else target.set_id)
    _packed(store, pack).check(after.set_id, weights_id)
    try:
        found = PatternSet.load(store.get, after.set_id)
        _turn(store, found, lambda: store.put(live_path(weights_id), after.encode()))
    except NotFound as error:
        raise NotFound(
            f"set {after.set_id[:16]}, live before {before.set_id[:16]}, is not whole any more; name another one with "
            "--to (`premoe patterns history` lists them), or build it again",
            reason=error.reason,
        ) from error
    return found, before.set_id


def history(store: Store, weights_id: str) -> Sequence[Listed]:
    """The live set of these weights and those that were, the one made live last first. Raises NotFound, CorruptData."""
    pointer = LivePointer.load(store.get, weights_id)
    return [
        Listed(
            version.set_id,
            "live" if version.set_id == pointer.set_id else "withdrawn" if version.withdrawn else "earlier",
            version.since,
            _stored(store, version.set_id),
        )
        for version in pointer.history
    ]


def by_need(store: Store) -> list[str]:
    """All sets of a store: live ones, then those that were live before, then others, the newest first. CorruptData."""
    pointers = [LivePointer.load(store.get, weights_id) for weights_id in live_weights(store)]
    written = dates(store, "sets")
    first = [pointer.set_id for pointer in pointers]
    then = [version.set_id for pointer in pointers for version in pointer.history]
    rest = sorted(written, key=lambda set_id: -written[set_id])
    return [set_id for set_id in dict.fromkeys((*first, *then, *rest)) if set_id in written]


def find_weights(store: Store, name: str | None = None) -> str:
    """The weights with a live set whose id starts with ``name``, or the only ones that a pack has.

    Raises NotFound, InvalidInput.
    """
    known = live_weights(store)
    found = [weights_id for weights_id in known if weights_id.startswith(name or "")]
    if len(found) > 1 and not name:
        packed = packed_weights(store)
        found = [weights_id for weights_id in found if not packed.lack(weights_id)] or found
    if len(found) == 1:
        return found[0]
    if not found:
        of = f" for weights {name!r}" if name and known else ""
        raise NotFound(
            f"{store.url} has no live pattern set{of}; make one live with `premoe patterns set-live`",
            reason="NO_LIVE_SET",
        )
    raise InvalidInput(
        f"{store.url} has live pattern sets of {len(found)} weights; name one with --weights: "
        + ", ".join(weights_id[:16] for weights_id in found),
        reason="WEIGHTS_AMBIGUOUS",
    )


def _packed(store: Store, pack: str | None) -> PackedWeights:
    if pack is None:
        return packed_weights(store)
    reader = open_pack(pack)
    return PackedWeights(reader.url, frozenset({reader.manifest().weights_id}))


def _turn(store: Store, found: PatternSet, turn: Callable[[], object]) -> None:
    """Move the live pointer to a set and look whether the set is still whole: somebody may have been removing it."""
    path = live_path(found.weights_id)
    before = store.get(path) if store.exists(path) else None
    check_whole(store, found)
    turn()
    try:
        check_whole(store, found)
    except NotFound:
        if live_set_id(store, found.weights_id) != found.set_id:
            pass  # somebody else has moved it on
        elif before is None:
            store.delete(path)
        else:
            store.put(path, before)
        raise


def _stored(store: Store, set_id: str) -> PatternSet | None:
    try:
        return PatternSet.load(store.get, set_id)
    except (NotFound, CorruptData):
        return None
