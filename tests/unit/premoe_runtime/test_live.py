"""The live pointer: what going live and rolling back make of it."""

from __future__ import annotations

from functools import partial

import pytest

from premoe_runtime.formats.errors import CorruptData, NotFound
from premoe_runtime.formats.live import MOST_VERSIONS, LivePointer, Version, go_live, live_path
from premoe_runtime.storage import open_store


def after(*sets: str) -> LivePointer:
    """The pointer once these went live, one a second."""
    pointer = LivePointer(set_id=sets[0])
    for now, set_id in enumerate(sets[1:], start=1):
        pointer = pointer.followed_by(set_id, float(now))
    return pointer


def said(pointer: LivePointer) -> str:
    """The history; the live set in capitals, withdrawn ones in brackets."""
    return " ".join(map(partial(word, pointer.set_id), pointer.history))


def word(live: str, version: Version) -> str:
    return (
        version.set_id.upper()
        if version.set_id == live
        else f"({version.set_id})"
        if version.withdrawn
        else version.set_id
    )


@pytest.mark.parametrize(
    ("sets", "expected"),
    [("a", "A"), ("ab", "B a"), ("abc", "C b a"), ("aba", "A b"), ("abb", "B a"), ("abcabc", "C b a")],
)
def test_going_live_remembers_each_set_once(sets: str, expected: str) -> None:
    assert said(after(*sets)) == expected


def test_the_memory_is_bounded_and_keeps_times() -> None:
    pointer = after(*(f"s{number}" for number in range(MOST_VERSIONS + 5)))
    assert [version.since for version in pointer.history] == [MOST_VERSIONS + 4 - back for back in range(MOST_VERSIONS)]


@pytest.mark.parametrize(
    ("sets", "steps", "expected"),
    [
        ("ab", [None], "(b) A"),
        ("abc", [None, None], "(c) (b) A"),
        ("abc", ["a"], "(c) (b) A"),
        ("abcd", ["b"], "(d) (c) B a"),
        ("abcd", ["b", None], "(d) (c) (b) A"),
        ("abc", [None, "c"], "C b a"),
        ("abc", [None, None, "c", None], "(c) (b) A"),
    ],
)
def test_rolling_back_goes_further_back_each_time(sets: str, steps: list[str | None], expected: str) -> None:
    pointer = after(*sets)
    for step in steps:
        pointer = pointer.rolled_back(99.0, step)
    assert said(pointer) == expected
    assert next(version.since for version in pointer.history if version.set_id == pointer.set_id) == 99.0


def test_a_set_that_goes_live_again_is_no_longer_withdrawn() -> None:
    pointer = after("a", "b").rolled_back(5.0)
    assert said(pointer.followed_by("b", 6.0)) == "B a"
    assert said(pointer.followed_by("c", 6.0).rolled_back(7.0)) == "(c) (b) A", "b stays passed over"


@pytest.mark.parametrize(
    ("pointer", "to", "says"),
    [
        (after("a"), None, "no other set was live before"),
        (after("a", "b").rolled_back(5.0), None, "no other set was live before"),
        (after("a", "b"), "x", "x was not live before"),
        (after("a", "b"), "b", "b was not live before"),
    ],
)
def test_there_is_not_always_a_set_to_roll_back_to(pointer: LivePointer, to: str | None, says: str) -> None:
    with pytest.raises(NotFound, match=says) as caught:
        pointer.rolled_back(9.0, to)
    assert caught.value.reason == "NO_EARLIER_SET"


def test_a_pointer_is_read_as_it_was_written_and_old_ones_too() -> None:
    pointer = after("a", "b", "c").rolled_back(5.0)
    assert LivePointer.decode(pointer.encode()) == pointer
    assert LivePointer.decode(b'{"set_id": "abc"}') == LivePointer(set_id="abc")
    assert said(LivePointer.decode(b'{"set_id": "a"}').followed_by("b", 1.0)) == "B a"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'{"set_id": 3}',
        b'{"set_id": ""}',
        b'{"other": "x"}',
        b'{"set_id": "a", "versions": [{"since": 1}]}',
    ],
)
def test_a_damaged_pointer_says_what_to_do(data: bytes) -> None:
    with pytest.raises(CorruptData, match="premoe patterns set-live") as caught:
        LivePointer.decode(data)
    assert caught.value.reason == "LIVE_SET_BROKEN"


def test_going_live_mends_a_damaged_pointer() -> None:
    store = open_store("memory://damaged-pointer")
    store.put(live_path("w"), b"no json")
    assert go_live(store.get, store.put, "w", "a", 1.0) is None
    assert go_live(store.get, store.put, "w", "b", 2.0) == "a"
    assert go_live(store.get, store.put, "w", "b", 3.0) == "b"
    pointer = LivePointer.load(store.get, "w")
    assert (said(pointer), pointer.history[0].since) == ("B a", 2.0)
