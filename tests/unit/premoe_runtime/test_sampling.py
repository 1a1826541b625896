"""Choosing tokens: distribution, nucleus, seeds, refusals, and a plain sampler as the oracle."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from premoe_runtime.engines import sampling
from premoe_runtime.engines.params import SamplingParams
from premoe_runtime.engines.sampling import Sampler, choose_batch
from premoe_runtime.formats.errors import CorruptData, InvalidInput

LOGITS = torch.log(torch.tensor([0.5, 0.1, 0.3, 0.1]))


def draws(params: SamplingParams, count: int, logits: torch.Tensor = LOGITS) -> list[int]:
    sampler = Sampler(params)
    return [chosen(sampler, logits) for _ in range(count)]


def chosen(sampler: Sampler, logits: torch.Tensor) -> int:
    (token,) = choose_batch([sampler], logits[None])
    assert isinstance(token, int)
    return token


def nucleus(logits: torch.Tensor, temperature: float, top_p: float, top_k: int = 0, min_p: float = 0.0) -> torch.Tensor:
    """f64[V]: softmax(logits / temperature), zero for those less likely than ``min_p`` of the likeliest, outside the
    likeliest ``top_k`` and, of these, outside the smallest set whose share reaches ``top_p``.
    """
    shifted = (logits.double() - logits.max()) / temperature
    probabilities = torch.softmax(shifted, dim=-1)
    least = math.log(min_p) if min_p else -math.inf
    kept = min(top_k or len(logits), int((shifted >= least).sum()))
    if kept < len(logits):
        _, ids = probabilities.sort(descending=True, stable=True)
        probabilities = probabilities.index_fill(0, ids[kept:], 0.0)
        probabilities = probabilities / probabilities.sum()
    if top_p >= 1.0:
        return probabilities
    ordered, ids = probabilities.sort(descending=True, stable=True)
    before = ordered.cumsum(0) - ordered
    return probabilities.index_fill(0, ids[before >= top_p], 0.0)


def plain_choice(params: SamplingParams, generator: torch.Generator, logits: torch.Tensor) -> int:
    """The oracle: one row, the whole vocabulary sorted twice."""
    if params.temperature == 0.0:
        return int(logits.argmax())
    ordered, ids = nucleus(logits.float(), params.temperature, params.top_p, params.top_k, params.min_p).sort(
        descending=True, stable=True
    )
    cumulative = ordered.cumsum(0)
    point = torch.rand((), generator=generator, dtype=torch.float64) * cumulative[-1]
    rank = int(torch.searchsorted(cumulative, point, right=True))
    return int(ids[min(rank, int((ordered > 0).sum()) - 1)])


@st.composite
def row_of_logits(draw: st.DrawFn) -> torch.Tensor:
    """f32[600]: smooth, coarse (full of ties), nearly tied, or mostly ruled out."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    values = torch.randn(600, generator=generator) * draw(st.sampled_from([0.0, 1e-20, 0.1, 1.0, 4.0, 30.0]))
    step = draw(st.sampled_from([0.0, 0.0, 0.25, 2.0]))
    values = (values / step).round() * step if step else values
    return values.masked_fill(torch.rand(600, generator=generator) < draw(st.sampled_from([0.0, 0.9])), -torch.inf)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(
        st.tuples(
            row_of_logits(),
            st.sampled_from([0.0, 1e-300, 0.01, 0.7, 1.0, 3.0, 1e9]),
            # Not what some equal tokens reach exactly: that would be a matter of rounding.
            st.sampled_from([1e-12, 0.1234, 0.5432, 0.9123, 0.99912, 1.0]),
            st.integers(0, 2**64 - 1),
            st.sampled_from([0, 0, 1, 2, 20, 300, 5000]),
            st.sampled_from([0.0, 0.0, 1e-9, 0.01, 0.3, 1.0]),
        ),
        min_size=1,
        max_size=4,
    ),
    candidates=st.sampled_from([1, 16, 100, 600, 1000]),
)
def test_a_batch_gives_the_tokens_of_the_plain_sampler(
    rows: list[tuple[torch.Tensor, float, float, int, int, float]], candidates: int
) -> None:
    logits = torch.stack([values if values.isfinite().any() else torch.zeros(600) for values, *_ in rows])
    params = [
        SamplingParams(temperature=heat, top_p=top_p, seed=seed, top_k=k, min_p=least)
        for _, heat, top_p, seed, k, least in rows
    ]
    samplers = [Sampler(each) for each in params]
    generators = [torch.Generator().manual_seed(seed) for *_, seed, _, _ in rows]
    for _ in range(6):
        expected = [plain_choice(*each) for each in zip(params, generators, logits, strict=True)]
        assert choose_batch(samplers, logits, candidates=candidates) == expected


def test_the_head_decides_most_draws_of_a_peaked_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise AssertionError("looked at the whole row")

    monkeypatch.setattr(sampling, "_from_row", refuse)
    logits = 3.0 * torch.randn(20000, generator=torch.Generator().manual_seed(0))
    samplers = [Sampler(SamplingParams(temperature=0.6, top_p=0.9, seed=seed)) for seed in range(40)]
    assert len(set(choose_batch(samplers, logits.expand(40, -1)))) > 5


def test_greedy_takes_the_maximum_and_the_lower_id_on_a_tie() -> None:
    assert draws(SamplingParams(), 3) == [0, 0, 0]
    assert draws(SamplingParams(), 1, torch.tensor([1.0, 3.0, 3.0])) == [1]


def test_draws_follow_the_distribution() -> None:
    counts = torch.bincount(torch.tensor(draws(SamplingParams(temperature=1.0, seed=7), 4000)), minlength=4)
    # Five standard errors of a binomial share at 4,000 draws are below 0.04.
    assert torch.allclose(counts / 4000, torch.tensor([0.5, 0.1, 0.3, 0.1]), atol=0.04)


def test_a_seed_repeats_and_another_differs() -> None:
    params = SamplingParams(temperature=1.0, seed=2**64 - 1)
    assert draws(params, 50) == draws(params, 50)
    assert draws(params, 50) != draws(replace(params, seed=5), 50)


def test_without_a_seed_runs_differ() -> None:
    params = SamplingParams(temperature=1.0)
    assert draws(params, 60) != draws(params, 60)


def test_sampling_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    draws(SamplingParams(temperature=1.0, seed=3), 10)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("top_p", "allowed"), [(0.4, {0}), (0.49, {0}), (0.51, {0, 2}), (0.81, {0, 1, 2}), (1.0, {0, 1, 2, 3})]
)
def test_the_nucleus_is_the_smallest_set_that_reaches_the_mass(top_p: float, allowed: set[int]) -> None:
    kept = nucleus(torch.tensor([0.5, 0.1, 0.3, 0.1]).double().log(), 1.0, top_p)
    assert set(kept.nonzero().flatten().tolist()) == allowed
    assert set(draws(SamplingParams(temperature=1.0, top_p=top_p, seed=1), 300)) == allowed


@pytest.mark.parametrize(
    ("top_k", "top_p", "allowed"),
    [(1, 1.0, {0}), (2, 1.0, {0, 2}), (3, 1.0, {0, 1, 2}), (2, 0.62, {0}), (2, 0.63, {0, 2}), (9, 1.0, {0, 1, 2, 3})],
)
def test_the_nucleus_is_taken_of_the_likeliest_k_and_ties_go_by_id(top_k: int, top_p: float, allowed: set[int]) -> None:
    assert set(draws(SamplingParams(temperature=1.0, top_k=top_k, top_p=top_p, seed=1), 300)) == allowed


@settings(deadline=None)
@given(
    st.lists(st.floats(-30, 30), min_size=1, max_size=40),
    st.floats(0.01, 5.0),
    st.floats(0.01, 1.0),
    st.integers(0, 2**64 - 1),
)
@example([0.0, 1.0885778819794413e-28], 1.0, 0.5, 0)
def test_only_tokens_of_the_nucleus_are_drawn(values: list[float], temperature: float, top_p: float, seed: int) -> None:
    logits = torch.tensor(values)
    kept = nucleus(logits, temperature, top_p)
    # Logits may differ by less than their probabilities can tell, so the likeliest token is told by its probability.
    assert float(kept.max()) == float(nucleus(logits, temperature, 1.0).max())
    assert float(kept.sum()) >= min(top_p, 1.0) - 1e-9
    for token in draws(SamplingParams(temperature=temperature, top_p=top_p, seed=seed), 5, logits):
        assert kept[token] > 0


def test_low_temperature_is_greedy() -> None:
    assert set(draws(SamplingParams(temperature=1e-4, seed=1), 50)) == {0}


def test_tokens_at_minus_infinity_are_never_drawn() -> None:
    logits = torch.tensor([0.0, -torch.inf, 0.0])
    assert set(draws(SamplingParams(temperature=5.0, seed=2), 200, logits)) == {0, 2}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_damaged_logits_fail_their_own_row_only(bad: float, temperature: float) -> None:
    samplers = [Sampler(SamplingParams(temperature=temperature, seed=1)) for _ in range(3)]
    logits = torch.tensor([[0.0, 50.0, 1.0], [0.0, bad, 1.0], [50.0, 0.0, 1.0]])
    first, damaged, last = choose_batch(samplers, logits)
    assert (first, last) == (1, 0)
    assert isinstance(damaged, CorruptData)
    assert "not finite" in str(damaged)


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        (SamplingParams(max_tokens=0), "MAX_TOKENS_INVALID"),
        (SamplingParams(temperature=-0.1), "TEMPERATURE_INVALID"),
        (SamplingParams(temperature=float("nan")), "TEMPERATURE_INVALID"),
        (SamplingParams(top_p=0.0), "TOP_P_INVALID"),
        (SamplingParams(top_p=1.5), "TOP_P_INVALID"),
        (SamplingParams(top_k=-1), "TOP_K_INVALID"),
        (SamplingParams(stop=("a", "")), "STOP_INVALID"),
        (SamplingParams(stop=tuple("abcdefghijklmnopq")), "STOP_INVALID"),
        (SamplingParams(seed=-1), "SEED_INVALID"),
        (SamplingParams(seed=2**64), "SEED_INVALID"),
        (SamplingParams(min_p=-0.1), "MIN_P_INVALID"),
        (SamplingParams(min_p=1.1), "MIN_P_INVALID"),
        (SamplingParams(presence_penalty=2.1), "PRESENCE_PENALTY_INVALID"),
        (SamplingParams(frequency_penalty=float("nan")), "FREQUENCY_PENALTY_INVALID"),
        (SamplingParams(repetition_penalty=0.0), "REPETITION_PENALTY_INVALID"),
        (SamplingParams(repetition_penalty=1e30), "REPETITION_PENALTY_INVALID"),
        (SamplingParams(logit_bias=((1, 100.5),)), "LOGIT_BIAS_INVALID"),
        (SamplingParams(logit_bias=tuple((token, 1.0) for token in range(301))), "LOGIT_BIAS_INVALID"),
        (SamplingParams(logit_bias=((50, 1.0),)), "LOGIT_BIAS_INVALID"),
        (SamplingParams(max_tokens=5, min_tokens=6), "MIN_TOKENS_INVALID"),
        (SamplingParams(stop_token_ids=(50,)), "STOP_TOKEN_IDS_INVALID"),
        (SamplingParams(stop_token_ids=(-1,)), "STOP_TOKEN_IDS_INVALID"),
        (SamplingParams(stop_token_ids=(1,) * 129), "STOP_TOKEN_IDS_INVALID"),
        (SamplingParams(logprobs=21), "LOGPROBS_INVALID"),
        (SamplingParams(prompt_logprobs=-1), "PROMPT_LOGPROBS_INVALID"),
    ],
)
def test_impossible_parameters_are_refused(params: SamplingParams, reason: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        params.check(vocabulary=50)
    assert caught.value.reason == reason
    assert str(caught.value).startswith(reason.removesuffix("_INVALID").lower())
    assert len(str(caught.value)) < 300
