"""The Range header."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from premoe_expert_store.http.ranges import Span, Unsatisfiable, wanted


@pytest.mark.parametrize(
    ("header", "span"),
    [
        (None, Span(0, 10, False)),
        ("", Span(0, 10, False)),
        ("bytes=0-", Span(0, 10, True)),
        ("bytes=0-0", Span(0, 1, True)),
        ("bytes=3-5", Span(3, 6, True)),
        ("Bytes = 3 - 99 ", Span(3, 10, True)),
        ("bytes=-4", Span(6, 10, True)),
        ("bytes=-99", Span(0, 10, True)),
        # None of these is a range of ours: everything is sent.
        ("bytes=5-3", Span(0, 10, False)),
        ("bytes=-", Span(0, 10, False)),
        ("bytes=0-1,4-5", Span(0, 10, False)),
        ("lines=0-1", Span(0, 10, False)),
        ("bytes=٣-", Span(0, 10, False)),
    ],
)
def test_what_is_sent_for_a_header(header: str | None, span: Span) -> None:
    assert wanted(header, 10) == span


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-12", "bytes=-0", "bytes=999999999999999999-"])
def test_a_range_behind_the_end(header: str) -> None:
    with pytest.raises(Unsatisfiable):
        wanted(header, 10)


@given(st.text(alphabet="bytes=0123456789-, ", max_size=20), st.integers(1, 1000))
def test_never_more_than_there_is(header: str, num_bytes: int) -> None:
    try:
        span = wanted(header, num_bytes)
    except Unsatisfiable:
        return
    assert 0 <= span.start < span.end <= num_bytes
