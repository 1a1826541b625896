"""The live pointer: what going live and rolling back make of it."""

from __future__ import annotations

import pytest

from premoe_runtime.formats.errors import CorruptData, NotFound
from premoe_runtime.formats.live import MOST_EARLIER, LivePointer, go_live, live_path
from premoe_runtime.storage import open_store


def after(*sets: str) -> LivePointer:
    """The pointer once these went live, one a second."""
    pointer = LivePointer(set_id=sets[0], since=0.0)
    for now, set_id in enumerate(sets[1:], start=1):
        pointer = pointer.followed_by(set_id, float(now))
    return pointer


def said(pointer: LivePointer) -> str:
    """The live set, then the earlier ones; withdrawn ones in brackets."""
    earlier = (f"({entry.set_id})" if entry.withdrawn else entry.set_id for entry in pointer.earlier)
    return " ".join((pointer.set_id, *earlier))


@pytest.mark.parametrize(
    ("sets", "expected"),
    [("a", "a"), ("ab", "b a"), ("abc", "c b a"), ("aba", "a b"), ("abb", "b a"), ("abcabc", "c b a")],
)
def test_going_live_remembers_each_set_once(sets: str, expected: str) -> None:
    assert said(after(*sets)) == expected


def test_the_memory_is_bounded_and_keeps_times() -> None:
    pointer = after(*(f"s{number}" for number in range(MOST_EARLIER + 5)))
    assert len(pointer.earlier) == MOST_EARLIER
    assert pointer.since == MOST_EARLIER + 4
    assert [entry.since for entry in pointer.earlier[:2]] == [MOST_EARLIER + 3, MOST_EARLIER + 2]


@pytest.mark.parametrize(
    ("sets", "steps", "expected"),
    [
        ("ab", [None], "a (b)"),
        ("abc", [None, None], "a (b) (c)"),
        ("abc", ["a"], "a (c) (b)"),
        ("abcd", ["b"], "b (d) (c) a"),
        ("abcd", ["b", None], "a (b) (d) (c)"),
        ("abc", [None, "c"], "c b a"),
    ],
)
def test_rolling_back_goes_further_back_each_time(sets: str, steps: list[str | None], expected: str) -> None:
    pointer = after(*sets)
    for step in steps:
        pointer = pointer.rolled_back(99.0, step)
    assert (said(pointer), pointer.since) == (expected, 99.0)


def test_a_set_that_goes_live_again_is_no_longer_withdrawn() -> None:
    assert said(after("a", "b").rolled_back(5.0).followed_by("b", 6.0)) == "b a"


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
    assert said(LivePointer.decode(b'{"set_id": "a"}').followed_by("b", 1.0)) == "b a"


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b'{"set_id": 3}', b'{"set_id": ""}', b'{"other": "x"}', b'{"set_id": "a", "earlier": [{"since": 1}]}'],
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
    assert said(LivePointer.load(store.get, "w")) == "b a"
    assert LivePointer.load(store.get, "w").since == 2.0
