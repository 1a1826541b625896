"""Prompts that can never fit are refused before they are turned into tokens whole."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny import piece_tokenizer, tiny_tokenizer
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.offline.prompt_room import PromptRoom
from premoe_runtime.offline.prompts import encode_prompt

FIXTURE = AutoTokenizer.from_pretrained(Path(__file__).parents[2] / "fixtures/tiny-moe")
TOKENIZERS = {"bytes": tiny_tokenizer(), "pieces": piece_tokenizer("a", "ab", "\u2581a"), "merges": FIXTURE}
CONTEXT = 64


@dataclass(frozen=True)
class Message:
    content: str
    role: str = "user"


class Counting:
    """A tokenizer that notes how many characters it was handed."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.characters = 0
        self.get_vocab = tokenizer.get_vocab
        self.backend_tokenizer = self
        self.model = tokenizer.backend_tokenizer.model
        self._inner = tokenizer.backend_tokenizer

    def encode_batch_fast(self, texts: list[str], **options: Any) -> Any:
        self.characters += sum(map(len, texts))
        return self._inner.encode_batch_fast(texts, **options)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", ["a b " * 2_500_000, "x" * 10_000_000, " " * 10_000_000, "漢" * 3_000_000])
def test_a_prompt_of_ten_megabytes_costs_no_more_than_a_context(name: str, text: str) -> None:
    counting = Counting(TOKENIZERS[name])
    with pytest.raises(InvalidInput, match="maximum context length is 64 tokens") as caught:
        PromptRoom.of(counting, CONTEXT).check(text)
    assert caught.value.reason == "CONTEXT_LENGTH_EXCEEDED"
    assert counting.characters <= 16 * CONTEXT


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=30)
@given(st.text(alphabet="ab 漢é\n", max_size=30), st.integers(1, 400))
def test_what_fits_is_never_refused(name: str, text: str, times: int) -> None:
    tokenizer = TOKENIZERS[name]
    tokens = len(tokenizer(text * times, add_special_tokens=False)["input_ids"])
    room = PromptRoom.of(tokenizer, CONTEXT)
    if tokens <= CONTEXT:
        room.check(text * times)


def test_a_text_of_few_long_tokens_is_counted_in_pieces() -> None:
    """Where the longest token says nothing, as of a vocabulary with one of 10,000 characters."""
    counting = Counting(TOKENIZERS["bytes"])
    room = replace(PromptRoom.of(counting, CONTEXT), longest=10**9)
    with pytest.raises(InvalidInput, match="maximum context length"):
        room.check("word " * 200_000)
    assert counting.characters <= 16 * CONTEXT


def test_unknown_characters_that_become_one_token_bound_nothing() -> None:
    made = Tokenizer(models.BPE(vocab={"<unk>": 0, "a": 1}, merges=[], unk_token="<unk>", fuse_unk=True))
    room = PromptRoom.of(PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>"), CONTEXT)
    assert room.longest is None
    room.check("漢" * 100_000)


def test_conversations_are_measured_rendered_and_by_their_messages() -> None:
    tokenizer = TOKENIZERS["bytes"]
    room = PromptRoom.of(tokenizer, CONTEXT)
    assert encode_prompt(tokenizer, [Message("hello")], room).token_ids
    for messages in ([Message("hello " * 1000)], [Message("a")] * 65):
        with pytest.raises(InvalidInput, match="maximum context length"):
            encode_prompt(tokenizer, messages, room)
