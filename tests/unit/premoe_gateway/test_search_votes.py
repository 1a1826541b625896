"""Which answers say the same."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from premoe_gateway.search.order import Vote
from premoe_gateway.search.verifiers.exact import ExactVerifier, NumberVerifier
from premoe_gateway.search.votes import agreement, key_of, last_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("5 + 7 = 12", "12"),
        ("about 1,234.50 euros.", "1234.50"),
        ("-3", "-3"),
        ("none", None),
        ("", None),
        ("9" * 101, None),
        ("x=4.", "4"),
        ("\u0663", None),
    ],
)
def test_the_last_number(text: str, number: str | None) -> None:
    assert last_number(text) == (None if number is None else Decimal(number))


def test_spaces_and_case_do_not_count_nor_what_stands_before_a_number() -> None:
    assert key_of(" The  Answer\n", "text") == key_of("the answer", "text")
    assert key_of("so it is 100", "number") == key_of("100.0", "number") == "100"
    assert key_of("Yes", "number") == "yes"


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=12), st.sampled_from(["text", "number"]))
def test_shares_of_a_vote(texts: list[str], vote: Vote) -> None:
    shares = agreement(texts, vote)
    assert shares == [texts.count(text) / len(texts) for text in texts]


async def test_exact_checkers() -> None:
    assert [await ExactVerifier(" 42 ").score(text) for text in ("42\n", "42.", "")] == [1.0, 0.0, 0.0]
    number = NumberVerifier("42")
    assert [await number.score(text) for text in ("it is 42.0", "42 or 43", "?")] == [1.0, 0.0, 0.0]


@given(st.text("0123456789,.-+ ", max_size=300))
def test_any_text_has_a_key(text: str) -> None:
    key_of(text, "number")


def test_a_long_text_is_read_once() -> None:
    assert last_number("1," * 100_000 + "x") is None  # a reader that went back would not end
