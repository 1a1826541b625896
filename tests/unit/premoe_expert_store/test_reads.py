from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from premoe_expert_store.reads import Missing, plan_reads, windows


def missing(path: str, offset: int, length: int) -> Missing:
    return Missing(path, offset, memoryview(bytearray(length)))


def shape(reads_of: list[Missing], limit: int) -> list[tuple[str, int, list[int]]]:
    return [(read.path, read.offset, [len(view) for view in read.views]) for read in plan_reads(reads_of, limit)]


def test_neighbours_share_a_request_and_others_do_not() -> None:
    asked = [missing("a", 20, 10), missing("b", 30, 10), missing("a", 10, 10), missing("a", 40, 10)]
    assert shape(asked, 100) == [("a", 10, [10, 10]), ("a", 40, [10]), ("b", 30, [10])]


def test_long_ones_are_cut_and_joined_ones_stay_within_the_limit() -> None:
    assert shape([missing("a", 0, 25), missing("a", 25, 5)], 10) == [
        ("a", 0, [10]),
        ("a", 10, [10]),
        ("a", 20, [5, 5]),
    ]


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 30)), unique=True, max_size=40),
    st.integers(1, 40),
    st.integers(1, 64),
)
def test_the_plan_fills_every_byte_once_from_its_place(
    cells: list[tuple[str, int]], cell_bytes: int, limit: int
) -> None:
    objects = {name: bytes((position * 7 + ord(name)) % 251 for position in range(31 * cell_bytes)) for name in "ab"}
    asked = [missing(path, cell * cell_bytes, cell_bytes) for path, cell in cells]
    total = 0
    for read in plan_reads(asked, limit):
        assert 0 < read.num_bytes <= limit
        offset = read.offset
        for view in read.views:
            view[:] = objects[read.path][offset : offset + len(view)]
            offset += len(view)
        total += read.num_bytes
    assert total == len(cells) * cell_bytes
    for one in asked:
        assert bytes(one.into) == objects[one.path][one.offset : one.offset + cell_bytes]


def test_windows_hold_at_least_one_item() -> None:
    assert [list(part) for part in windows(range(5), item_bytes=10, window_bytes=25)] == [[0, 1], [2, 3], [4]]
    assert [list(part) for part in windows(range(2), item_bytes=100, window_bytes=25)] == [[0], [1]]
    assert windows([], item_bytes=1, window_bytes=1) == []
