"""What a store of patterns holds: list it, remove sets. Part of `premoe patterns`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, TypeVar

import click

from premoe_local.console import date, json_option, note, print_json, print_table
from premoe_local.retrieval_option import forget, index_option, tls_options
from premoe_runtime.formats.errors import Conflict, CorruptData
from premoe_runtime.formats.pattern import Pattern
from premoe_runtime.formats.pattern_set import PatternSet
from premoe_runtime.offline.patterns import library, upkeep
from premoe_runtime.offline.profile.record import Profile
from premoe_runtime.packs.weights import PackedWeights, packed_weights
from premoe_runtime.storage import Store, open_store

if TYPE_CHECKING:
    from premoe_servicekit.tls import Tls

T = TypeVar("T")


@click.command("list")
@click.argument("store_url")
@json_option
def list_(store_url: str, as_json: bool) -> None:
    """List the profiles, patterns and sets of a store."""
    store = open_store(store_url)
    packed = packed_weights(store)
    live = _live(store, packed)
    document = {
        "profiles": _entries(store, "profiles", Profile.load, _profile_entry),
        "patterns": _entries(store, "patterns", Pattern.load, pattern_document),
        "sets": _entries(store, "sets", PatternSet.load, lambda found: _set_entry(found, live, packed)),
    }
    if as_json:
        print_json(document)
        return
    for title, entries in document.items():
        columns = list(entries[0]) if entries else ["none"]
        print_table(title.capitalize(), columns, [[_short(entry[name]) for name in columns] for entry in entries])


def _entries(
    store: Store,
    kind: library.Kind,
    load: Callable[[Callable[[str], bytes], str], T],
    describe: Callable[[T], dict[str, Any]],
) -> list[dict[str, Any]]:
    """What lies under ``kind``, each with its date. Damaged files are named on stderr."""
    entries = []
    for name, made in sorted(library.dates(store, kind).items()):
        try:
            entries.append({**describe(load(store.get, name)), "made": date(made)})
        except CorruptData as error:
            note(f"note: {error}")
    return entries


def _live(store: Store, packed: PackedWeights) -> set[str]:
    """Live sets of all weights. Damaged pointers and stale sets are named on stderr."""
    found = set()
    for weights_id in library.live_weights(store):
        try:
            set_id = library.live_set_id(store, weights_id) or ""
            found.add(set_id)
            packed.check(set_id, weights_id)
        except (CorruptData, Conflict) as error:
            note(f"note: {error}")
    return found


def _profile_entry(profile: Profile) -> dict[str, Any]:
    return {
        "profile_id": profile.profile_id,
        "task": profile.task,
        "weights_id": profile.weights_id,
        "samples": profile.samples,
        "tokens": profile.tokens,
    }


def _set_entry(found: PatternSet, live: Collection[str], packed: PackedWeights) -> dict[str, Any]:
    return {
        "set_id": found.set_id,
        "weights_id": found.weights_id,
        "metric": found.document.metric,
        "allocation": found.allocation,
        "tasks": [member.task for member in found.specialists],
        "live": found.set_id in live,
        "stale": packed.lack(found.weights_id),
    }


@click.command("rm")
@click.argument("store_url")
@click.argument("names", metavar="SET...", nargs=-1, required=True)
@index_option
@json_option
@tls_options
def remove(store_url: str, names: tuple[str, ...], address: str | None, as_json: bool, tls: Tls | None) -> None:
    """Remove sets, named by the start of their ids, with the patterns that no other set names.

    The live set of a model is refused. A set that was live before can no longer be rolled back to.
    """
    store = open_store(store_url)
    set_ids = [library.resolve(store, "sets", name) for name in names]
    forget(address, tls, set_ids)
    removed = [upkeep.remove_set(store, set_id) for set_id in set_ids]
    if as_json:
        print_json({"removed": [{"set_id": set_id, "patterns": patterns} for set_id, patterns in removed]})
        return
    for set_id, patterns in removed:
        click.echo(f"removed set {set_id} and {len(patterns)} patterns")


def pattern_document(pattern: Pattern) -> dict[str, Any]:
    return {
        "pattern_id": pattern.pattern_id,
        "task": pattern.task,
        "kind": pattern.kind,
        "metric": pattern.metric,
        "allocation": pattern.allocation,
        "semantics": pattern.semantics,
        "weights_id": pattern.weights_id,
        "profiles": list(pattern.profiles),
    }


def _short(value: object) -> str:
    """Ids cut to what is enough to name them by."""
    items = [str(item) for item in value] if isinstance(value, list) else [str(value)]
    return ", ".join(item[:16] if len(item) == 64 else item for item in items)
