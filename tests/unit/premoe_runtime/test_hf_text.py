"""Text of growing sequences: pieces join to the whole, nothing half-done is shown, stop strings never are."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny import tiny_tokenizer

from premoe_runtime.engines.hf.text import REPLACEMENT, Detokenizer, StopMatcher, overlap, settled_length

TOKENIZER = tiny_tokenizer()


def pieces_of(token_ids: list[int]) -> tuple[list[str], str]:
    stream = Detokenizer(TOKENIZER)
    return [stream.push(token) for token in token_ids], stream.flush()


@settings(deadline=None)
@given(st.text(max_size=60))
def test_pieces_join_to_the_text(text: str) -> None:
    token_ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    pieces, rest = pieces_of(token_ids)
    assert "".join(pieces) + rest == text


@settings(deadline=None)
@given(st.text(alphabet=st.characters(exclude_characters=REPLACEMENT, codec="utf-8"), max_size=60))
def test_no_piece_holds_half_a_character(text: str) -> None:
    pieces, rest = pieces_of(TOKENIZER(text, add_special_tokens=False)["input_ids"])
    assert not any(REPLACEMENT in piece for piece in pieces)
    assert rest == ""


@settings(deadline=None)
@given(st.lists(st.integers(0, 255), max_size=150))
def test_any_bytes_at_all_join_to_what_decoding_at_once_gives(token_ids: list[int]) -> None:
    pieces, rest = pieces_of(token_ids)
    assert "".join(pieces) + rest == TOKENIZER.decode(token_ids)


def test_a_character_appears_with_its_last_byte() -> None:
    pieces, _ = pieces_of(TOKENIZER("a€b")["input_ids"])
    assert pieces == ["a", "", "", "€", "b"]


def test_special_tokens_have_no_text() -> None:
    assert pieces_of([*TOKENIZER("hi")["input_ids"], TOKENIZER.eos_token_id]) == (["h", "i", ""], "")


class Recording:
    """A decoder that notes how much it was asked to decode."""

    def __init__(self) -> None:
        self.longest = 0

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        self.longest = max(self.longest, len(token_ids))
        return str(TOKENIZER.decode(token_ids, skip_special_tokens=skip_special_tokens))


def test_long_answers_are_decoded_in_windows() -> None:
    decoder = Recording()
    stream = Detokenizer(decoder)
    text = "grün und 漢字 " * 60
    joined = "".join(stream.push(token) for token in TOKENIZER(text)["input_ids"]) + stream.flush()
    assert joined == text
    assert decoder.longest < 40


@pytest.mark.parametrize(("text", "length"), [("", 0), ("abc", 3), ("ab\ufffd", 2), ("\ufffd" * 5, 2), ("\ufffdx", 2)])
def test_only_a_short_tail_may_still_change(text: str, length: int) -> None:
    assert settled_length(text) == length


@settings(deadline=None)
@given(st.lists(st.text("ab", max_size=5), max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_output_ends_before_the_stop_string_that_is_complete_first(pieces: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    shown = "".join(matcher.push(piece) for piece in pieces)
    text = "".join(pieces)
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if matcher.matched is None:
        assert not ends
        assert shown + matcher.flush() == text
    else:
        assert shown + matcher.matched == text[: len(shown) + len(matcher.matched)]
        assert not any(stop in shown for stop in stops)


@settings(deadline=None)
@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_letter_by_letter_the_earliest_end_wins(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    shown = "".join(matcher.push(letter) for letter in text)
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if ends:
        assert matcher.matched is not None
        assert len(shown) + len(matcher.matched) == min(ends)
    else:
        assert shown + matcher.flush() == text


def test_what_may_begin_a_stop_string_is_held_back() -> None:
    matcher = StopMatcher(["END!"])
    assert [matcher.push(piece) for piece in ("on", "e E", "N", "", "t", "END", "!", "x")] == [
        "on",
        "e ",
        "",
        "",
        "ENt",
        "",
        "",
        "",
    ]
    assert matcher.matched == "END!"


@pytest.mark.parametrize(
    ("text", "stop", "size"), [("ab", "abc", 2), ("xa", "abc", 1), ("abc", "abc", 0), ("", "a", 0)]
)
def test_overlap_counts_the_prefix_at_the_end(text: str, stop: str, size: int) -> None:
    assert overlap(text, stop) == size
