"""Biases and penalties against transformers' own processors, and against their plain definition."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from premoe_runtime.engines.adjustment import Adjustment, adjusted
from premoe_runtime.engines.params import SamplingParams
from premoe_runtime.engines.sampling import Sampler, choose_batch
from premoe_runtime.formats.errors import InvalidInput

VOCABULARY = 60
ENDS = frozenset({3, 17})
tokens = st.lists(st.integers(0, VOCABULARY - 1), max_size=12)
penalty = st.sampled_from([0.0, 0.0, -2.0, -0.5, 0.3, 1.0, 2.0])

wishes = st.builds(
    SamplingParams,
    presence_penalty=penalty,
    frequency_penalty=penalty,
    repetition_penalty=st.sampled_from([1.0, 1.0, 0.001, 0.5, 1.05, 2.0, 1000.0]),
    logit_bias=st.dictionaries(st.integers(0, VOCABULARY - 1), st.floats(-100, 100), max_size=5).map(
        lambda biases: tuple(biases.items())
    ),
    min_tokens=st.integers(0, 6),
)


def reference(
    params: SamplingParams, prompt: list[int], answer: list[int], ends: frozenset[int], logits: torch.Tensor
) -> torch.Tensor:
    """f64[V], token by token as the names say: bias, ends, then repetition, frequency and presence."""
    values = logits.double().clone()
    for token, bias in params.logit_bias:
        values[token] += bias
    if len(answer) < params.min_tokens:
        values[list(ends)] = -torch.inf
    for token in {*prompt, *answer}:
        factor = params.repetition_penalty
        values[token] = values[token] / factor if values[token] > 0 else values[token] * factor
    for token, count in Counter(answer).items():
        values[token] -= params.frequency_penalty * count + params.presence_penalty
    return values


def after(params: SamplingParams, prompt: list[int], answer: list[int]) -> Adjustment | None:
    adjustment = Adjustment.of(params, prompt, ENDS)
    for token in answer:
        if adjustment is not None:
            adjustment.note(token)
    return adjustment


@settings(deadline=None)
@given(st.lists(st.tuples(wishes, tokens, tokens), min_size=1, max_size=4), st.integers(0, 2**32))
def test_a_batch_is_changed_as_each_row_s_definition_says(
    rows: list[tuple[SamplingParams, list[int], list[int]]], seed: int
) -> None:
    logits = 5 * torch.randn(len(rows), VOCABULARY, generator=torch.Generator().manual_seed(seed))
    before = logits.clone()
    found = adjusted([after(*row) for row in rows], logits)
    expected = torch.stack([reference(*row, ENDS, values) for row, values in zip(rows, before, strict=True)])
    assert torch.allclose(found, expected.float(), rtol=1e-6, atol=1e-6)
    assert torch.equal(logits, before)


@settings(deadline=None)
@given(tokens, tokens, st.sampled_from([0.5, 1.05, 1.3, 2.0]), st.integers(0, 5), st.integers(0, 2**32))
def test_repetition_penalty_and_min_tokens_are_those_of_transformers(
    prompt: list[int], answer: list[int], factor: float, least: int, seed: int
) -> None:
    logits = 5 * torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    # The end tokens are barred last there, which comes to the same.
    stock = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(factor)])
    if least:
        stock.append(MinNewTokensLengthLogitsProcessor(len(prompt), least, sorted(ENDS), device="cpu"))
    params = SamplingParams(repetition_penalty=factor, min_tokens=least)
    found = adjusted([after(params, prompt, answer)], logits)
    expected = stock(torch.tensor([prompt + answer], dtype=torch.int64), logits.clone())
    assert torch.allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(temperature=1.0, top_k=4, min_p=0.3, seed=1)])
def test_without_a_wish_the_logits_stay_the_same_tensor(params: SamplingParams) -> None:
    logits = torch.randn(2, VOCABULARY)
    assert adjusted([Adjustment.of(params, [1, 2], ENDS)] * 2, logits) is logits
    assert Adjustment.of(replace(params, repetition_penalty=1.1), [], ENDS) is not None


def test_rows_beside_one_with_wishes_keep_their_bits() -> None:
    logits = torch.randn(3, VOCABULARY)
    wish = after(SamplingParams(repetition_penalty=1.3, logit_bias=((5, 9.0),)), [1, 2, 3], [4, 4])
    found = adjusted([None, wish, None], logits)
    assert torch.equal(found[[0, 2]], logits[[0, 2]])
    assert not torch.equal(found[1], logits[1])


def test_long_prompts_and_answers_of_many_tokens_are_counted() -> None:
    vocabulary = 1000
    params = SamplingParams(
        frequency_penalty=0.5,
        presence_penalty=-0.5,
        repetition_penalty=1.3,
        logit_bias=tuple((token, 1.0) for token in range(300)),
        min_tokens=700,
    )
    prompt, answer = [*range(100, 500)] * 2, [*range(250, 900)] + [3] * 40
    logits = torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(2))
    for made in (answer, [*answer, *answer]):
        found = adjusted([after(params, prompt, made)], logits)
        assert torch.allclose(found[0], reference(params, prompt, made, ENDS, logits[0]).float(), atol=1e-4)


@pytest.mark.parametrize(
    ("temperature", "min_p", "top_k", "top_p"),
    [(1.0, 0.2, 0, 1.0), (0.7, 0.05, 0, 0.8), (1.5, 0.1, 6, 1.0), (2.0, 0.02, 9, 0.6), (1.0, 1.0, 0, 1.0)],
)
@pytest.mark.parametrize("candidates", [4, 16, VOCABULARY])
def test_what_is_drawn_is_what_transformers_leaves(
    temperature: float, min_p: float, top_k: int, top_p: float, candidates: int
) -> None:
    logits = 2 * torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(5))
    stock = LogitsProcessorList([TemperatureLogitsWarper(temperature), MinPLogitsWarper(min_p)])
    stock += [TopKLogitsWarper(top_k)] if top_k else []
    stock += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    left = stock(torch.zeros(1, 0, dtype=torch.int64), logits.clone())[0]
    sampler = Sampler(SamplingParams(temperature=temperature, min_p=min_p, top_k=top_k, top_p=top_p, seed=3))
    count = 3000
    drawn = [choose_batch([sampler], logits, candidates=candidates)[0] for _ in range(count)]
    shares = torch.bincount(torch.tensor(drawn), minlength=VOCABULARY) / count
    assert torch.equal(shares > 0, left.softmax(-1) > 0)
    # Five standard errors of a binomial share at 3,000 draws are below 0.05.
    assert torch.allclose(shares, left.softmax(-1), atol=0.05)


def test_greedy_obeys_biases_and_penalties() -> None:
    logits = torch.tensor([[0.0, 3.0, 2.9, 1.0]])
    sampler = Sampler(SamplingParams(presence_penalty=0.5, logit_bias=((3, 1.8),)))
    answer = []
    for _ in range(5):
        (token,) = choose_batch([sampler], logits)
        assert isinstance(token, int)
        answer.append(token)
        sampler.note(token)
    assert answer == [1, 2, 3, 1, 1]


def test_a_row_whose_last_way_out_is_barred_is_the_request_s_fault_and_fails_alone() -> None:
    logits = torch.full((2, VOCABULARY), -torch.inf)  # as a grammar leaves them
    logits[:, 3] = 1.0
    samplers = [Sampler(SamplingParams(min_tokens=2), [], ENDS), Sampler(SamplingParams())]
    failed, token = choose_batch(samplers, logits)
    assert token == 3
    assert isinstance(failed, InvalidInput)
    assert failed.reason == "MIN_TOKENS_INVALID"


def test_a_bias_may_let_a_token_win_that_was_not_among_the_candidates() -> None:
    logits = torch.arange(VOCABULARY).float()[None]
    sampler = Sampler(SamplingParams(temperature=1.0, logit_bias=((0, 100.0),), seed=1))
    assert choose_batch([sampler], logits, candidates=2) == [0]
