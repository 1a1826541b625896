"""Pieces of blobs."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from premoe_runtime.formats.pieces import PIECE_BYTES, Hole, piece, piece_count, pieces, runs, touched


@given(st.integers(1, 5 * PIECE_BYTES))
def test_pieces_lie_one_after_another_and_fill_the_blob(num_bytes: int) -> None:
    found = pieces(num_bytes)
    assert len(found) == piece_count(num_bytes)
    assert [one.offset for one in found] == [0, *(one.end for one in found[:-1])]
    assert found[-1].end == num_bytes


@given(st.integers(1, 5 * PIECE_BYTES), st.data())
def test_runs_cover_the_pieces_and_nothing_else(num_bytes: int, data: st.DataObject) -> None:
    count = piece_count(num_bytes)
    wanted = sorted(data.draw(st.sets(st.integers(0, count - 1))))
    found = runs(wanted, num_bytes)
    assert [index for index, _ in touched(num_bytes, found)] == wanted
    assert sum(one.length for one in found) == sum(piece(index, num_bytes).length for index in wanted)
    assert all(one.end < other.offset for one, other in pairwise(found))


def test_touched_are_those_that_share_bytes() -> None:
    assert touched(PIECE_BYTES + 1, [Hole(PIECE_BYTES, 1)]) == [(1, Hole(PIECE_BYTES, 1))]
