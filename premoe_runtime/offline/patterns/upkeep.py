"""Deleting what an object store holds: sets and profiles that nobody wants any more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from premoe_runtime.formats.errors import Conflict, CorruptData, InvalidInput, NotFound
from premoe_runtime.formats.pattern import pattern_path
from premoe_runtime.formats.pattern_set import PatternSet, set_paths
from premoe_runtime.offline.patterns.library import ids, live_sets, resolve
from premoe_runtime.offline.profile.record import Profile, profile_path
from premoe_runtime.storage import Store


def remove_set(store: Store, name: str) -> tuple[str, list[str]]:
    """Delete a set and the patterns that only it names; returns its id and theirs.

    Raises NotFound, InvalidInput (ambiguous), and Conflict for a live set, which processes may be serving.
    """
    set_id = resolve(store, "sets", name)
    if set_id in live_sets(store).values():
        raise Conflict(
            f"set {set_id[:16]} is live; make another one live first (`premoe patterns set-live`)", reason="SET_LIVE"
        )
    kept = {pattern for other in ids(store, "sets") if other != set_id for pattern in _patterns_of(store, other)}
    removed = [pattern for pattern in _patterns_of(store, set_id) if pattern not in kept]
    for path in (*set_paths(set_id), *map(pattern_path, removed)):
        store.delete(path)
    return set_id, removed


def find_profiles(store: Store, name: str) -> list[str]:
    """Ids of the profile whose id starts with ``name``, or of all profiles of the task ``name``.

    Raises NotFound, and InvalidInput when several ids start so.
    """
    of_task = [found.profile_id for _, found in readable_profiles(store) if found is not None and found.task == name]
    return of_task or [resolve(store, "profiles", name)]


def readable_profiles(store: Store) -> Iterator[tuple[str, Profile | None]]:
    """Every profile by its id; None for one whose file is damaged."""
    for profile_id in ids(store, "profiles"):
        try:
            yield profile_id, Profile.load(store.get, profile_id)
        except (CorruptData, InvalidInput):
            yield profile_id, None


def remove_profiles(store: Store, profile_ids: Sequence[str]) -> None:
    """Delete profiles. Patterns made from them stay as they are."""
    for profile_id in profile_ids:
        store.delete(profile_path(profile_id))


def _patterns_of(store: Store, set_id: str) -> list[str]:
    """Patterns that a set names; none where it is damaged."""
    try:
        return [member.pattern_id for member in PatternSet.load(store.get, set_id).members]
    except (CorruptData, NotFound):
        return []
