"""Log probabilities of chosen and likeliest tokens."""

from __future__ import annotations

import pytest
import torch

from premoe_runtime.engines.logprobs import logprobs
from premoe_runtime.formats.errors import CorruptData


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_they_are_those_of_the_softmax(dtype: torch.dtype) -> None:
    logits = (4 * torch.randn(3, 500, generator=torch.Generator().manual_seed(1))).to(dtype)
    expected = logits.double().log_softmax(-1)
    for row, (token, count) in enumerate([(7, 0), (499, 5), (0, 20)]):
        found = logprobs(logits, [7, 499, 0], [0, 5, 20])[row]
        assert found.token_id == token
        assert found.logprob == pytest.approx(float(expected[row, token]), abs=1e-5)
        best = expected[row].topk(count)
        assert [value for _, value in found.top] == pytest.approx(best.values.tolist(), abs=1e-5)
        assert [float(expected[row, each]) for each, _ in found.top] == pytest.approx(best.values.tolist(), abs=1e-5)
        assert all(type(each) is int and type(value) is float for each, value in found.top)


def test_more_than_there_are_and_tokens_that_cannot_be() -> None:
    (found,) = logprobs(torch.tensor([[0.0, -torch.inf, 0.0]]), [1], [20])
    assert found.logprob == -torch.inf
    assert len(found.top) == 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_damaged_logits_are_refused(bad: float) -> None:
    with pytest.raises(CorruptData, match="not finite"):
        logprobs(torch.tensor([[0.0, bad]]), [0], [1])
