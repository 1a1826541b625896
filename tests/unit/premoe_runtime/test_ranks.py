"""Slots shared out over several devices: who has which, how plans spread over them, and one copy of many."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sources import MemorySource
from support.tiny import tiny_checkpoint

from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.residency.copier import Copied, merged
from premoe_runtime.residency.ledger import Ledger
from premoe_runtime.residency.plan import EMPTY, plan_swap
from premoe_runtime.residency.ranks import ranks_of, share
from premoe_runtime.residency.slot_shape import SlotShape


@given(slots=st.integers(1, 300), ranks=st.integers(1, 17))
def test_shares_are_runs_that_cover_all_slots_and_differ_by_one_at_most(slots: int, ranks: int) -> None:
    shares = [share(slots, ranks, rank) for rank in range(ranks)]
    assert [slot for each in shares for slot in each] == list(range(slots))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert ranks_of(slots, ranks) == [rank for rank, each in enumerate(shares) for _ in each]


@given(slots=st.integers(4, 40), ranks=st.integers(1, 4), data=st.data())
def test_a_pattern_in_empty_slots_is_spread_evenly(slots: int, ranks: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, slots))
    loads = plan_swap(frozenset(ExpertId(0, e) for e in range(count)), [[EMPTY] * slots], frozenset(), {}, ranks=ranks)
    each = Counter(ranks_of(slots, ranks)[load.slot] for load in loads)
    room = Counter(ranks_of(slots, ranks))
    full = min(room.values())
    spread = [each[rank] for rank in range(ranks)]
    assert max(spread) - min(spread) <= 1 or min(spread) == full


@given(
    table=st.lists(st.integers(-1, 9), min_size=3, max_size=8, unique_by=lambda e: e if e >= 0 else object()),
    needed=st.frozensets(st.integers(0, 9), max_size=3),
    recency=st.dictionaries(st.integers(0, 9), st.integers(0, 5)),
    ranks=st.integers(1, 3),
)
def test_what_gives_way_does_not_depend_on_ranks(
    table: list[int], needed: frozenset[int], recency: dict[int, int], ranks: int
) -> None:
    def evicted(ranks: int) -> list[int]:
        asked, known = frozenset(ExpertId(0, e) for e in needed), {ExpertId(0, e): at for e, at in recency.items()}
        loads = plan_swap(asked, [table], frozenset(), known, ranks=ranks)
        assert len({load.slot for load in loads}) == len(loads)
        return sorted(-1 if load.evicts is None else known.get(load.evicts, -1) for load in loads)

    assert evicted(ranks) == evicted(1)


def test_a_full_ledger_fills_the_rank_with_the_fewest_of_a_pattern() -> None:
    ledger = Ledger((4,), (8,), [[0, 1, 2, 3]], ranks=2)
    (load,) = ledger.plan({ExpertId(0, 0), ExpertId(0, 1), ExpertId(0, 5)})
    assert load.slot in (2, 3)


def test_a_copy_is_what_all_ranks_made_of_it() -> None:
    one, two, three = (ExpertId(0, e) for e in range(3))
    error = OSError("lost")
    parts = [
        Copied(frozenset({one}), start_ns=5, end_ns=9),
        Copied(frozenset({two}), frozenset({three}), {}, 4, 7, error),
    ]
    assert merged(parts) == Copied(frozenset({one, two}), frozenset({three}), {}, 4, 9, error)


def test_more_devices_than_slots_are_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    manifest = MemorySource(tiny_checkpoint(tmp_path)).manifest()
    with pytest.raises(InvalidInput, match="3 slots of a layer do not go round 4 devices"):
        SlotShape.as_stored(manifest, slots=3, ranks=4)
