"""Which set of a store is live: choose another one, roll back, and what was live before."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from premoe_runtime.formats.errors import CorruptData, InvalidInput, NotFound
from premoe_runtime.formats.live import LivePointer, live_path
from premoe_runtime.formats.pattern import pattern_path
from premoe_runtime.formats.pattern_set import PatternSet
from premoe_runtime.offline.patterns.library import go_live, live_weights, resolve
from premoe_runtime.storage import Store


@dataclass(frozen=True, slots=True)
class Version:
    """A set that is or was live. ``since``: seconds since 1970, where known; ``stored``: None where it is gone."""

    set_id: str
    state: Literal["live", "earlier", "withdrawn"]
    since: float | None
    stored: PatternSet | None


def set_live(store: Store, name: str) -> PatternSet:
    """Make the set named by the start of its id the live one of its weights.

    Raises NotFound (the set, or a pattern of it), InvalidInput (ambiguous), CorruptData.
    """
    found = _whole(store, resolve(store, "sets", name))
    go_live(store, found.weights_id, found.set_id)
    return found


def roll_back(store: Store, weights: str | None = None, to: str | None = None) -> tuple[PatternSet, str]:
    """Make the set that was live before, or the earlier one named ``to``, live again; returns it and the one withdrawn.

    ``weights`` and ``to`` are the starts of ids. Raises NotFound (no such set, or none before), InvalidInput
    (ambiguous, or ``to`` is a set of other weights), CorruptData.
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
    try:
        found = _whole(store, after.set_id)
    except NotFound as error:
        raise NotFound(
            f"{error}; it was live before {before.set_id[:16]}: name another one with --to, see `premoe patterns history`",
            reason=error.reason,
        ) from error
    store.put(live_path(weights_id), after.encode())
    return found, before.set_id


def history(store: Store, weights_id: str) -> Sequence[Version]:
    """The live set of these weights and those before it, newest first. Raises NotFound, CorruptData."""
    pointer = LivePointer.load(store.get, weights_id)
    return (
        Version(pointer.set_id, "live", pointer.since, _stored(store, pointer.set_id)),
        *(
            Version(
                entry.set_id,
                "withdrawn" if entry.withdrawn else "earlier",
                entry.since,
                _stored(store, entry.set_id),
            )
            for entry in pointer.earlier
        ),
    )


def find_weights(store: Store, name: str | None = None) -> str:
    """The weights with a live set whose id starts with ``name``, or the only ones. Raises NotFound, InvalidInput."""
    known = live_weights(store)
    found = [weights_id for weights_id in known if weights_id.startswith(name or "")]
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


def _whole(store: Store, set_id: str) -> PatternSet:
    """A set whose patterns are all stored. Raises NotFound, CorruptData."""
    try:
        found = PatternSet.load(store.get, set_id)
    except NotFound as error:
        raise NotFound(f"set {set_id[:16]} is not whole in {store.url}", reason="SET_NOT_FOUND") from error
    for member in found.members:
        if not store.exists(pattern_path(member.pattern_id)):
            raise NotFound(
                f"pattern {member.pattern_id[:16]} (task {member.task}) of set {found.set_id[:16]} is not in "
                f"{store.url}; build the set again",
                reason="PATTERN_NOT_FOUND",
            )
    return found


def _stored(store: Store, set_id: str) -> PatternSet | None:
    try:
        return PatternSet.load(store.get, set_id)
    except (NotFound, CorruptData):
        return None
