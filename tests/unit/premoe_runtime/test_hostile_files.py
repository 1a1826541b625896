"""Files out of object storage that somebody made to hurt: one CorruptData line each, never another error."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.blob_pack import write_blob_pack
from support.profiles import profile
from support.stored_patterns import store_set

from premoe_runtime.formats import arrays
from premoe_runtime.formats.errors import CorruptData
from premoe_runtime.formats.live import LivePointer
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.formats.pattern import Pattern
from premoe_runtime.formats.pattern_set import PatternSet
from premoe_runtime.offline.profile.record import Profile
from premoe_runtime.storage import open_store

STORE = open_store("memory://hostile")
STORED = store_set(STORE)
DOCUMENT, EXEMPLARS = STORED.pattern_set.to_files()
POINTER = LivePointer(set_id="ab" * 32).followed_by("cd" * 32, 2.5).rolled_back(3.5)


def read_manifest(data: bytes) -> None:
    """With its id made right again, as somebody who wants to hurt would."""
    try:
        Manifest.parse(data)
    except CorruptData as error:
        if "model_id is not the digest" not in str(error):
            raise
        found = Manifest.model_validate_json(data)
        found = found.model_copy(update={"model_id": found.content_id()})
        assert 0 < Manifest.parse(found.to_json()).experts_bytes < 1 << 63


TEXTS: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "manifest": (read_manifest, write_blob_pack(STORE).manifest.to_json()),
    "set": (lambda data: PatternSet.from_files(data, EXEMPLARS), DOCUMENT),
    "live pointer": (lambda data: LivePointer.decode(data), POINTER.encode()),
}
BINARIES: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "pattern": (lambda data: Pattern.from_bytes(data), STORED.patterns["sorting"].to_bytes()),
    "profile": (lambda data: Profile.from_bytes(data), profile("add", prompts=4).to_bytes()),
}
ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**31, 2**63, 2**64, -(2**63), 1e308, float("nan"), float("inf"), 10**400, 0.5),
    *("", "F4", "../../etc", "/abs", "a\nb", "\u2028", "x" * 100_000, "\ud800", "1" * 5000),
    *([], {}, [[]], [-1], [2**63, 2**63], {"a": 1}, [[[[[1]]]]]),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a JSON document has values, itself included."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, one in inner for place in places(one, (*path, key)))]


def changed(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = list(document) if isinstance(document, list) else dict(document)
    copy[path[0]] = changed(document[path[0]], path[1:], value)
    return copy


def one_line(read: Callable[[bytes], object], data: bytes) -> None:
    with pytest.raises(CorruptData) as error:
        read(data)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("kind", TEXTS)
def test_nothing_put_in_any_place_of_a_document_escapes(kind: str) -> None:
    read, whole = TEXTS[kind]
    document = json.loads(whole)
    for place in places(document):
        for odd in ODD:
            try:
                read(json.dumps(changed(document, place, odd)).encode())
            except CorruptData as error:
                found = str(error)
                if not found.isprintable() or len(found) > 600:
                    pytest.fail(f"{place} = {odd!r}: {found[:800]!r}")


@pytest.mark.parametrize("kind", [*TEXTS, *BINARIES])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 20,
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"format":' + b"[" * 200_000,
        b"1" * 200_000,
        b'{"a\\nb": 1}',
        (200_000).to_bytes(8, "little") + b"[" * 200_000,
        (2**64 - 1).to_bytes(8, "little") + b"{}",
    ],
    ids=["empty", "no text", "brackets", "objects", "deep field", "digits", "odd key", "deep header", "long header"],
)
def test_garbage_is_one_line(kind: str, data: bytes) -> None:
    one_line((TEXTS | BINARIES)[kind][0], data)


@pytest.mark.parametrize("kind", BINARIES)
def test_nothing_in_the_metadata_escapes(kind: str) -> None:
    read, whole = BINARIES[kind]
    tensors, metadata = arrays.decode(whole, where=kind)
    deep = "[" * 200_000
    for key in metadata:
        for odd in ("", "-1", "1e999", "9" * 5000, deep, "[1]", '{"layers": [-1]}', "a\nb", "../x"):
            with suppress(CorruptData):
                read(arrays.encode(tensors, {**metadata, key: odd}))
    one_line(read, arrays.encode(tensors, {}))


@pytest.mark.parametrize("kind", BINARIES)
def test_nothing_in_the_arrays_escapes(kind: str) -> None:
    """Other shapes and dtypes of each array, one at a time."""
    read, whole = BINARIES[kind]
    tensors, metadata = arrays.decode(whole, where=kind)
    for name, array in tensors.items():
        for odd in (
            np.zeros(0, array.dtype),
            np.zeros((), array.dtype),
            np.zeros((0, 0, 0), array.dtype),
            np.zeros((1, 1 << 20), array.dtype),
            np.full(array.shape, -1, array.dtype),
            array.astype(np.float32) * np.nan,
        ):
            with suppress(CorruptData):
                read(arrays.encode({**tensors, name: odd.astype(odd.dtype)}, metadata))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_flipped_bytes_escape(data: st.DataObject) -> None:
    read, whole = data.draw(st.sampled_from([*TEXTS.values(), *BINARIES.values()]))
    broken = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 5))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    with suppress(CorruptData):
        read(bytes(broken))
