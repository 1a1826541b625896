"""The shaping loss: Beta marginals by closed forms, and routers that take the distribution they are asked for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from premoe_runtime.compress.dirichlet import Marginal, _marginal, shaping_loss

CONCENTRATIONS = st.floats(0.02, 20)


@given(other=CONCENTRATIONS)
@settings(max_examples=30, deadline=None)
def test_the_cdf_is_that_of_closed_forms(other: float) -> None:
    """Beta(1, b): 1 - (1 - p)^b; Beta(a, 1): p^a."""
    p = torch.logspace(-9, -0.001, 200, dtype=torch.float64)
    logit = p.log() - torch.log1p(-p)
    assert torch.allclose(_marginal(1.0, other).cdf(logit), -torch.expm1(other * torch.log1p(-p)), atol=2e-4)
    assert torch.allclose(_marginal(other, 1.0).cdf(logit), p**other, atol=2e-4)


@given(concentration=CONCENTRATIONS, count=st.integers(2, 300))
@settings(max_examples=40, deadline=None)
def test_a_cdf_rises_from_0_to_1_and_can_be_followed(concentration: float, count: int) -> None:
    logit = torch.linspace(-80, 80, 801, dtype=torch.float64).requires_grad_()
    found = Marginal.of(concentration, count).cdf(logit)
    assert bool((found.diff() >= -1e-9).all())
    assert 0 <= float(found.detach()[0]) <= float(found.detach()[-1]) <= 1 + 1e-9
    (slope,) = torch.autograd.grad(found.sum(), logit)
    assert bool(slope.isfinite().all())
    assert float(slope.min()) >= -1e-12


def drawn(concentration: float, tokens: int, experts: int) -> torch.Tensor:
    """Logits whose softmax is drawn from a symmetric Dirichlet."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shares = torch.distributions.Dirichlet(torch.full((experts,), concentration, dtype=torch.float64))
        return shares.sample((tokens,)).clamp(min=1e-30).log()


def test_what_is_drawn_from_the_prior_costs_least() -> None:
    for own in (0.1, 1.0, 5.0):
        logits = drawn(own, 2000, 8)
        costs = {other: float(shaping_loss(logits, other)) for other in (0.1, 1.0, 5.0)}
        assert min(costs, key=costs.__getitem__) == own
        assert costs[own] < 1e-3
    assert float(shaping_loss(torch.zeros(50, 8), 0.1)) < 1 / 3


def test_a_router_learns_the_shape() -> None:
    """Uniform routers and a sparse prior: the loss falls, tokens get few large shares, experts stay equally used."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokens, weight = torch.randn(512, 16), (torch.randn(8, 16) * 0.1).requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=0.05)
    first = float(shaping_loss(tokens @ weight.T, 0.2).detach())
    before = float((tokens @ weight.T).softmax(-1).amax(-1).mean().detach())
    for _ in range(100):
        optimizer.zero_grad()
        shaping_loss(tokens @ weight.T, 0.2).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    share = (tokens @ weight.T).softmax(-1).detach()
    assert float(shaping_loss(tokens @ weight.T, 0.2).detach()) < first / 4
    assert float(share.amax(-1).mean()) > 1.5 * before
    assert float(share.mean(0).max()) < 0.25


def test_no_such_prior() -> None:
    for concentration, count in ((0.0, 8), (float("nan"), 8), (1.0, 1)):
        with pytest.raises(ValueError, match="no Dirichlet"):
            Marginal.of(concentration, count)
