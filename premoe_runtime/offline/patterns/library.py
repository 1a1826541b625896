"""Profiles, patterns and sets in an object store."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal

from premoe_runtime.formats.errors import InvalidInput, NotFound
from premoe_runtime.formats.ids import SetId
from premoe_runtime.formats.live import LIVE_FOLDER, LivePointer
from premoe_runtime.formats.live import go_live as switch
from premoe_runtime.formats.pattern import Pattern, pattern_path
from premoe_runtime.formats.pattern_set import PatternSet, set_paths
from premoe_runtime.offline.patterns.build import BuiltSet
from premoe_runtime.offline.profile.record import Profile, profile_path
from premoe_runtime.packs.weights import packed_weights
from premoe_runtime.storage import Store, open_store

_PACK = re.compile(r"(?P<root>.+)/models/[^/]+/?")

Kind = Literal["profiles", "patterns", "sets"]
_LISTED = {"profiles": "profile list", "patterns": "patterns list", "sets": "patterns list"}
"""The command that shows what there is of a kind."""


def store_of(model_url: str, to: str | None = None) -> Store:
    """The object store that holds a model's profiles and patterns: ``to``, or the one its pack lies in.

    Raises InvalidInput for a URL that no store can be opened at.
    """
    if to is not None:
        return open_store(to)
    match = _PACK.fullmatch(model_url)
    return open_store(match["root"] if match else model_url)


def ids(store: Store, kind: Kind) -> list[str]:
    """Ids of what lies under ``kind``, sorted."""
    return sorted(dates(store, kind))


def dates(store: Store, kind: Kind) -> dict[str, float]:
    """When what lies under ``kind`` was written, in seconds since 1970, by id."""
    suffix = ".json" if kind == "sets" else ".safetensors"
    found = [(info.path.rsplit("/", 1)[-1], info.modified) for info in store.list(kind)]
    return {name.removesuffix(suffix): modified for name, modified in found if name.endswith(suffix)}


def resolve(store: Store, kind: Kind, name: str) -> str:
    """The one id under ``kind`` that starts with ``name``. Raises NotFound (none), InvalidInput (several)."""
    found = [known for known in ids(store, kind) if known.startswith(name)] if name else []
    if not found:
        raise NotFound(
            f"no {kind[:-1]} {name!r} in {store.url}; see `premoe {_LISTED[kind]}`",
            reason=f"{kind[:-1].upper()}_NOT_FOUND",
        )
    if len(found) > 1 and name not in found:
        raise InvalidInput(
            f"{kind[:-1]} {name!r} is ambiguous in {store.url}: {len(found)} ids start with it; give more digits",
            reason="ID_AMBIGUOUS",
        )
    return name if name in found else found[0]


def profiles_of(store: Store, weights_id: str, names: Sequence[str] = ()) -> list[Profile]:
    """The named profiles, or every profile of these weights.

    Raises NotFound, CorruptData, and InvalidInput when a named one belongs to other weights.
    """
    wanted = [resolve(store, "profiles", name) for name in names] or ids(store, "profiles")
    found = [Profile.load(store.get, profile_id) for profile_id in dict.fromkeys(wanted)]
    if not names:
        return [profile for profile in found if profile.weights_id == weights_id]
    for profile in found:
        if profile.weights_id != weights_id:
            raise InvalidInput(
                f"profile {profile.profile_id[:12]} (task {profile.task}) belongs to weights "
                f"{profile.weights_id[:12]}, the model has {weights_id[:12]}; profile this model",
                reason="WEIGHTS_MISMATCH",
            )
    return found


def put_profile(store: Store, profile: Profile) -> str:
    """Store a profile under its id and return it."""
    profile_id = profile.profile_id
    store.put(profile_path(profile_id), profile.to_bytes())
    return profile_id


def publish(store: Store, built: BuiltSet, *, live: bool = False) -> SetId:
    """Store patterns, then exemplars, then the document, and only then, when asked to, the live pointer."""
    for pattern in built.patterns:
        store.put(pattern_path(pattern.pattern_id), pattern.to_bytes())
    return put_set(store, built.pattern_set, live=live)


def put_set(store: Store, pattern_set: PatternSet, *, live: bool = False) -> SetId:
    """Store a set whose patterns are stored already; the live pointer, when asked for, comes last.

    Raises NotFound where patterns of it were removed meanwhile, and then it is not live.
    """
    set_id = pattern_set.set_id
    document, exemplars = pattern_set.to_files()
    document_path, exemplars_path = set_paths(set_id)
    store.put(exemplars_path, exemplars)
    store.put(document_path, document)
    check_whole(store, pattern_set)
    if live:
        go_live(store, pattern_set.weights_id, set_id)
    return set_id


def check_whole(store: Store, pattern_set: PatternSet) -> None:
    """Raise NotFound where a pattern of the set, or a file of the set itself, is not stored."""
    set_id = pattern_set.set_id
    for member in pattern_set.members:
        if not store.exists(pattern_path(member.pattern_id)):
            raise NotFound(
                f"pattern {member.pattern_id[:16]} (task {member.task}) of set {set_id[:16]} is not in {store.url}; "
                "build the set again",
                reason="PATTERN_NOT_FOUND",
            )
    if not all(map(store.exists, set_paths(set_id))):
        raise NotFound(f"set {set_id[:16]} is not whole in {store.url}; build it again", reason="SET_NOT_FOUND")


def go_live(store: Store, weights_id: str, set_id: str) -> None:
    """Switch the live pointer of these weights: one atomic write."""
    switch(store.get, store.put, weights_id, set_id, time.time())


def live_set_id(store: Store, weights_id: str) -> SetId | None:
    """The live set of these weights, if any. Raises CorruptData."""
    try:
        return SetId(LivePointer.load(store.get, weights_id).set_id)
    except NotFound:
        return None


def live_weights(store: Store) -> list[str]:
    """Every ``weights_id`` that has a live set, sorted."""
    names = store.list_names(LIVE_FOLDER)
    return [name.removesuffix(".json") for name in names if name.endswith(".json")]


def live_sets(store: Store) -> dict[str, SetId]:
    """Live set of every ``weights_id`` that has one. Raises CorruptData."""
    return {name: found for name in live_weights(store) if (found := live_set_id(store, name)) is not None}


def find_set(store: Store, name: str | None = None) -> PatternSet:
    """The named set, or the only live one that is not stale. Raises NotFound, InvalidInput (several are live)."""
    if name:
        return PatternSet.load(store.get, resolve(store, "sets", name))
    live = live_sets(store)
    if len(live) > 1:
        packed = packed_weights(store)
        live = {weights_id: set_id for weights_id, set_id in live.items() if not packed.lack(weights_id)} or live
    if len(live) != 1:
        found = f"{len(live)} live pattern sets" if live else "no live pattern set"
        raise (InvalidInput if live else NotFound)(
            f"{store.url} has {found}; name a set with --set", reason="SET_NOT_FOUND"
        )
    return _load(store, next(iter(live.values())))


def find_pattern(store: Store, name: str, set_name: str | None = None) -> Pattern:
    """A pattern by its task in a set (the live one by default), by id, or by the start of its id.

    Tasks come first: "add" begins many ids. Raises NotFound, InvalidInput, CorruptData.
    """
    if name in ids(store, "patterns"):
        return Pattern.load(store.get, name)
    with suppress(NotFound, InvalidInput):
        return Pattern.load(store.get, find_set(store, set_name).member(name).pattern_id)
    if any(known.startswith(name) for known in ids(store, "patterns")):
        return Pattern.load(store.get, resolve(store, "patterns", name))
    return Pattern.load(store.get, find_set(store, set_name).member(name).pattern_id)


def load_set(store: Store, weights_id: str, name: str | None = None) -> PatternSet:
    """The named set, or the live one of these weights.

    Raises NotFound (unknown, or none live) and InvalidInput (a set of other weights).
    """
    set_id = resolve(store, "sets", name) if name else live_set_id(store, weights_id)
    if set_id is None:
        raise NotFound(
            f"{store.url} has no live pattern set for weights {weights_id[:12]}; "
            "run `premoe patterns build … --set-live`",
            reason="SET_NOT_FOUND",
        )
    found = _load(store, set_id)
    if found.weights_id != weights_id:
        raise InvalidInput(
            f"set {set_id[:12]} belongs to weights {found.weights_id[:12]}, the model has {weights_id[:12]}",
            reason="WEIGHTS_MISMATCH",
        )
    return found


def _load(store: Store, set_id: str) -> PatternSet:
    """A set that is listed or live. Raises NotFound, CorruptData."""
    try:
        return PatternSet.load(store.get, set_id)
    except NotFound as error:
        raise NotFound(
            f"set {set_id[:16]} is not whole in {store.url}; build it again, or make another live with "
            "`premoe patterns set-live`",
            reason="SET_NOT_FOUND",
        ) from error
