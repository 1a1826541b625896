from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from premoe_gateway.routing.rank import BUSIER, Candidate, missing_share, rank

CASES: dict[str, tuple[list[Candidate], list[str]]] = {
    "nobody there": ([], []),
    "lower address among equals": ([Candidate("b", 0), Candidate("a", 0)], ["a", "b"]),
    "less to do first": ([Candidate("a", 2), Candidate("b", 1)], ["b", "a"]),
    "who ran the pattern": ([Candidate("a", 0), Candidate("b", 2, recency=1)], ["b", "a"]),
    "who ran it last": ([Candidate("a", 0, recency=1), Candidate("b", 0, recency=0)], ["b", "a"]),
    "unless clearly busier": ([Candidate("b", BUSIER + 1, recency=0), Candidate("a", 0)], ["a", "b"]),
    "fewer bytes to move": ([Candidate("a", 0, missing=0.9), Candidate("b", 3, missing=0.2)], ["b", "a"]),
    "affinity before bytes": ([Candidate("a", 0, missing=0.1), Candidate("b", 0, recency=2, missing=0.9)], ["b", "a"]),
    "a few experts are worth no queue": (
        [Candidate("a", 1, missing=0.50), Candidate("b", 0, missing=0.52)],
        ["b", "a"],
    ),
    "the conversation's": ([Candidate("a", 0, recency=0), Candidate("b", 1, talked=True)], ["b", "a"]),
    "a fresh one for a new pattern": ([Candidate("a", 0, others=1), Candidate("b", 0)], ["b", "a"]),
    "room before everything": (
        [Candidate("a", 0, has_room=False, talked=True, recency=0), Candidate("b", 9, missing=1.0)],
        ["b", "a"],
    ),
    "who is in doubt comes last": (
        [Candidate("a", 0, answers=False, talked=True), Candidate("b", 0, has_room=False), Candidate("c", 9)],
        ["c", "b", "a"],
    ),
    "who is full makes nobody busy": (
        [Candidate("a", 0, has_room=False), Candidate("b", 9, recency=0), Candidate("c", 8)],
        ["b", "c", "a"],
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_rank(case: tuple[list[Candidate], list[str]]) -> None:
    candidates, expected = case
    assert [candidate.address for candidate in rank(candidates)] == expected


def candidates() -> st.SearchStrategy[list[Candidate]]:
    one = st.builds(
        Candidate,
        address=st.text("abcdef", min_size=1, max_size=3),
        load=st.integers(0, 12),
        answers=st.booleans(),
        has_room=st.booleans(),
        talked=st.booleans(),
        recency=st.none() | st.integers(0, 7),
        missing=st.floats(0, 1),
        others=st.integers(0, 8),
    )
    return st.lists(one, max_size=6, unique_by=lambda candidate: candidate.address)


@given(candidates(), st.randoms())
def test_every_worker_is_ranked_once_whatever_the_order(found: list[Candidate], random: Random) -> None:
    shuffled = list(found)
    random.shuffle(shuffled)
    assert rank(shuffled) == rank(found)
    assert sorted(rank(found), key=lambda each: each.address) == sorted(found, key=lambda each: each.address)


@given(candidates())
def test_who_answers_and_has_room_goes_first(found: list[Candidate]) -> None:
    able = [(candidate.answers, candidate.has_room) for candidate in rank(found)]
    assert able == sorted(able, reverse=True)


@given(candidates())
def test_what_a_worker_holds_never_costs_more_than_a_short_queue(found: list[Candidate]) -> None:
    with_room = [candidate for candidate in rank(found) if candidate.answers and candidate.has_room]
    if with_room:
        assert with_room[0].load <= min(candidate.load for candidate in with_room) + BUSIER


@given(candidates(), st.data())
def test_holding_more_never_makes_a_worker_rank_lower(found: list[Candidate], data: st.DataObject) -> None:
    if not found:
        return
    chosen = data.draw(st.sampled_from(found))
    better = data.draw(
        st.sampled_from(
            [
                replace(chosen, talked=True),
                replace(chosen, recency=0),
                replace(chosen, missing=0.0),
                replace(chosen, others=0),
            ]
        )
    )
    before = rank(found).index(chosen)
    assert rank([better if each is chosen else each for each in found]).index(better) <= before


@given(candidates())
def test_an_idle_worker_of_the_conversation_keeps_it(found: list[Candidate]) -> None:
    found = [replace(candidate, talked=False) for candidate in found if candidate.address != "zz"]
    keeper = Candidate("zz", 0, talked=True, missing=1.0, others=8)
    assert rank([*found, keeper])[0] == keeper


@pytest.mark.parametrize(
    ("residents", "kept", "share"),
    [
        (({0, 1}, {3, 2}), (2, 2), 0.0),
        (({0, 5}, {3, 7}), (2, 2), 0.5),
        ((set(), set()), (2, 2), 1.0),
        (({0, 1},), (2, 2), 0.5),
        (({0, 1, 4, 5}, {3, 2}), (4, 2), pytest.approx(1 / 3)),
        (({0}, {3}), (0, 0), 0.0),
    ],
)
def test_missing_share(residents: tuple[set[int], ...], kept: tuple[int, ...], share: float) -> None:
    ranking = ((0, 1, 2, 3, 4, 5), (3, 2, 1, 0, 5, 4))
    assert missing_share(ranking, [frozenset(each) for each in residents], kept) == share
