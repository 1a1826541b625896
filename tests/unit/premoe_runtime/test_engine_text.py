"""Text of growing sequences: pieces join to the whole, nothing half-done is shown, stop strings never are."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny import piece_tokenizer, tiny_tokenizer
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from premoe_runtime.engines.text import REPLACEMENT, Detokenizer, StopMatcher, TokenText, overlap, settled_length

TOKENIZER = tiny_tokenizer()
TEXT = TokenText(TOKENIZER)
PIECES = piece_tokenizer("\u2581Hi", "Hi", "\u2581", ".", "\u2581.")
PIECE_TEXT = TokenText(PIECES)


BYTE_CHARACTERS = bytes_to_unicode()
"""How byte-level tokenizers write each byte."""


def pieces_of(token_ids: list[int], text: TokenText = TEXT, prompt: Sequence[int] = ()) -> tuple[list[str], str]:
    stream = Detokenizer(text, prompt)
    return [stream.push(token) for token in token_ids], stream.flush()


def ids_of(*tokens: str) -> list[int]:
    """Ids of tokens; a byte token for each byte of what is none."""
    found: list[int] = []
    for token in tokens:
        known = token in PIECES.get_vocab()
        names = [token] if known else [f"<0x{byte:02X}>" for byte in token.encode()]
        found += PIECES.convert_tokens_to_ids(names)
    return found


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


class Recording(TokenText):
    """Notes how much it was asked to decode."""

    longest = 0

    def decode(self, token_ids: Sequence[int]) -> str:
        self.longest = max(self.longest, len(token_ids))
        return super().decode(token_ids)


@pytest.mark.parametrize("tokenizer", [TOKENIZER, PIECES], ids=["byte level", "byte fallback"])
def test_long_answers_are_decoded_in_windows(tokenizer: PreTrainedTokenizerFast) -> None:
    decoder = Recording(tokenizer)
    text = "grün und 漢字 " * 60
    pieces, rest = pieces_of(tokenizer(text, add_special_tokens=False)["input_ids"], decoder)
    assert "".join(pieces) + rest == text
    assert decoder.longest < 40


def test_runs_of_byte_tokens_come_character_by_character() -> None:
    pieces, rest = pieces_of(ids_of("\u2581Hi", "漢字", "Hi"), PIECE_TEXT)
    assert pieces == ["Hi", "", "", "漢", "", "", "字", "Hi"]
    assert rest == ""


WHOLE_PIECES = st.lists(
    st.sampled_from(["\u2581Hi", "Hi", "\u2581", ".", "\u2581.", "漢", "é", "🙂", "</s>"]), max_size=60
)


@settings(deadline=None)
@given(WHOLE_PIECES, WHOLE_PIECES)
def test_the_text_is_that_of_the_whole_sequence(prompt: list[str], answer: list[str]) -> None:
    before, after = ids_of(*prompt), ids_of(*answer)
    pieces, rest = pieces_of(after, PIECE_TEXT, before)
    assert PIECE_TEXT.decode(before) + "".join(pieces) + rest == PIECE_TEXT.decode(before + after)


@pytest.mark.parametrize(
    ("tokens", "shown"),
    [
        (["漢", "<0xE6>"], "漢\ufffd"),
        (["漢", "<0xE6>", "<0xBC>"], "漢\ufffd"),
        (["漢", "<0xE6>", "字"], "漢\ufffd字"),
        (["<0xFF>", "<0xFE>", "漢"], "\ufffd\ufffd漢"),
        (["<0xE6>", "Hi", "字"], "\ufffdHi字"),
        (["<0xE6>", "</s>", "字"], "\ufffd字"),
    ],
)
def test_bytes_that_make_no_character_cost_none_beside_them(tokens: list[str], shown: str) -> None:
    pieces, rest = pieces_of(ids_of(*tokens), PIECE_TEXT)
    assert "".join(pieces) + rest == shown


@pytest.mark.parametrize(("tokenizer", "text"), [(TOKENIZER, TEXT), (PIECES, PIECE_TEXT)], ids=["level", "fallback"])
@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        (b"a\xe6", b"b", "b"),
        (b"a\xe6", b"\xbc\xa2b", "漢b"),
        (b"a\xe6\xbc", b"", ""),
        (b"a\xe6\xbc", b"\xe6", "\ufffd"),
        (b"a\xe6\xbc", b"\xa2", "漢"),
        (b"a", b"\xbcb", "\ufffdb"),
    ],
)
def test_a_prompt_may_end_in_the_middle_of_a_character(
    tokenizer: PreTrainedTokenizerFast, text: TokenText, before: bytes, after: bytes, shown: str
) -> None:
    def ids(data: bytes) -> list[int]:
        if text is PIECE_TEXT:
            return [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in data]
        return [tokenizer.convert_tokens_to_ids(BYTE_CHARACTERS[byte]) for byte in data]

    pieces, rest = pieces_of(ids(after), text, ids(before))
    assert "".join(pieces) + rest == shown


@settings(deadline=None)
@given(st.lists(st.integers(0, 255), max_size=150))
def test_any_run_of_byte_tokens_is_the_text_of_its_bytes(values: list[int]) -> None:
    ids = PIECES.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in [ord("a"), *values]])
    pieces, rest = pieces_of(ids, PIECE_TEXT)
    assert "".join(pieces) + rest == bytes([ord("a"), *values]).decode(errors="replace")


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


@pytest.mark.parametrize(
    ("stops", "shown", "matched"),
    [
        (["<|end|>"], ["a", "", "b", ""], True),
        (["b<|end|>"], ["a", "", "", ""], True),
        (["b<|end|>c"], ["a", "", "", "", "bd"], False),
        (["<|end|><|user|>"], ["a", "", "b", ""], False),
        (["end"], ["a", "", "b", ""], False),
    ],
)
def test_special_tokens_are_found_in_stop_strings_and_never_shown(
    stops: list[str], shown: list[str], matched: bool
) -> None:
    matcher = StopMatcher(stops, TEXT.special)
    special = TOKENIZER.convert_tokens_to_ids(["<|user|>", "<|end|>"])
    steps = [("a", 0), ("", special[0]), ("b", 0), ("", special[1]), ("d", 0)]
    assert [matcher.push(text, token) for text, token in steps][: len(shown)] == shown
    assert (matcher.matched is not None) == matched


def test_a_special_token_of_no_stop_string_overtakes_no_text() -> None:
    matcher = StopMatcher(["Sure, here", "b<|end|>"], TEXT.special)
    user, end = TOKENIZER.convert_tokens_to_ids(["<|user|>", "<|end|>"])
    steps = [("Sure", 0), ("", user), (", here", 0), ("b", 0), ("", end)]
    assert [matcher.push(text, token) for text, token in steps] == ["", "Sure", ", here", "", ""]
    assert matcher.matched is not None


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
