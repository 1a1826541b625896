"""What single tokens write."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.tiny import piece_tokenizer, tiny_tokenizer
from transformers import PreTrainedTokenizerFast

from premoe_runtime.engines.hf.token_bytes import TokenBytes
from premoe_runtime.engines.text import Detokenizer, TokenText

LEVEL = tiny_tokenizer()
PIECES = piece_tokenizer("\u2581Hi", "Hi", "\u2581", ".", "\u2581.", "a")
both = pytest.mark.parametrize("tokenizer", [LEVEL, PIECES], ids=["byte level", "byte fallback"])


def written(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> bytes:
    tokens = TokenBytes(tokenizer)
    return b"".join(tokens.of(token) for token in ids if not tokens.is_special(token))


@both
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
@example(" Hi")
def test_the_bytes_of_all_tokens_are_those_of_the_text(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    # What pieces write a space as, and the special tokens' names, are no text of their own.
    text = text.replace("\u2581", "")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    # Pieces have a space before all text, one more where it begins with one.
    assert written(tokenizer, ids).decode() == (f" {text}" if text and tokenizer is PIECES else text)


@both
@given(st.lists(st.integers(0, 255), max_size=12))
def test_they_are_the_streamed_text_however_bytes_lie(tokenizer: PreTrainedTokenizerFast, values: list[int]) -> None:
    names = [f"<0x{value:02X}>" for value in values] if tokenizer is PIECES else None
    ids = values if names is None else tokenizer.convert_tokens_to_ids(names)
    prompt = tokenizer("a", add_special_tokens=False)["input_ids"]
    stream = Detokenizer(TokenText(tokenizer), prompt)
    text = "".join([stream.push(token) for token in ids]) + stream.flush()
    assert written(tokenizer, ids).decode(errors="replace") == text


def test_a_word_brings_its_space_but_as_the_first_of_all() -> None:
    tokens = TokenBytes(PIECES)
    word = PIECES.convert_tokens_to_ids("\u2581Hi")
    assert (tokens.of(word), tokens.of(word, first=True)) == (b" Hi", b"Hi")
    byte = PIECES.convert_tokens_to_ids("<0xC3>")
    assert tokens.of(byte) == tokens.of(byte, first=True) == b"\xc3"


@both
def test_special_tokens_have_names_and_ids_without_a_token_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = TokenBytes(tokenizer)
    end = tokenizer.eos_token_id
    assert tokens.is_special(end)
    assert tokens.of(end) == tokenizer.eos_token.encode()
    assert not tokens.is_special(len(tokenizer) + 5)
    assert tokens.of(len(tokenizer) + 5) == b""
    assert tokens.names([end, len(tokenizer) + 5]) == [tokenizer.eos_token, ""]
