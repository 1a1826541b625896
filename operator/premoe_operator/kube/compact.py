"""Objects as the cache keeps them: without what is of no use, and what they have in common with others once in memory.

Ten thousand pods of workers differ in a name, an address and some times. As a JSON decoder makes them they are 25 KiB
each, and Python's collector walks through all of it while events wait. Whoever holds such an object must not change it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from premoe_operator.kube.objects import Json


def compact(obj: Json, like: Json | None) -> Json:
    """``obj`` without managedFields, half of its bytes, sharing each equal part with ``like``, itself compact.

    ``like`` is best an older version of the object, or a sibling of its kind. Equal strings are shared with all.
    """
    metadata = {name: value for name, value in obj["metadata"].items() if name != "managedFields"}
    kept: Json = _shared({**obj, "metadata": metadata}, like)
    return kept


def _shared(value: Any, like: Any) -> Any:
    if isinstance(value, str):
        return sys.intern(str(value))
    if isinstance(value, Mapping):
        known = like if isinstance(like, dict) else {}
        entries = {sys.intern(str(name)): _shared(entry, known.get(name)) for name, entry in value.items()}
        same = known.keys() == entries.keys() and all(entries[name] is known[name] for name in entries)
        return like if same and isinstance(like, dict) else entries
    if isinstance(value, list):
        known_items = like if isinstance(like, list) else []
        items = [_shared(entry, _at(known_items, place)) for place, entry in enumerate(value)]
        same = len(items) == len(known_items) and all(a is b for a, b in zip(items, known_items, strict=True))
        return like if same and isinstance(like, list) else items
    return like if type(value) is type(like) and value == like else value


def _at(items: list[Any], place: int) -> Any:
    return items[place] if place < len(items) else None
