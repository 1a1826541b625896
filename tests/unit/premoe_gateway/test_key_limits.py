"""Leaky buckets, and what keys may use."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st
from premoe_gateway.access.buckets import MINUTE_S, Bucket
from premoe_gateway.access.keys import Key
from premoe_gateway.access.limits import Limited, Limits
from premoe_gateway.domain import Ask, Sampling
from premoe_gateway.usage import Usage

steps = st.lists(st.tuples(st.floats(0, 100), st.integers(1, 50)), max_size=60)


@given(st.integers(1, 200), steps)
def test_no_span_of_time_sees_more_than_a_minute_s_worth_and_what_leaked_in_it(
    per_minute: int, asks: list[tuple[float, int]]
) -> None:
    """Whatever comes and whenever: at most the limit at once, and at most the rate for long."""
    bucket, now = Bucket(), 0.0
    admitted: list[float] = []
    for pause, count in asks:
        now += pause
        for _ in range(count):
            if not bucket.wait_s(now, per_minute):
                bucket = bucket.plus(1, now, per_minute)
                admitted.append(now)
    for first, begin in enumerate(admitted):
        for last in range(first, len(admitted)):
            span = admitted[last] - begin
            assert last - first + 1 <= per_minute * (1 + span / MINUTE_S) + 1e-6


@given(st.integers(1, 200), st.floats(0, 1e5), st.floats(0, 1e6))
def test_who_waits_as_told_gets_in_and_not_much_sooner(per_minute: int, spent: float, now: float) -> None:
    bucket = Bucket().plus(spent, now, per_minute)
    wait_s = bucket.wait_s(now, per_minute)
    assert bucket.wait_s(now + wait_s + 1e-6 * (1 + wait_s), per_minute) < 1e-6 * (1 + wait_s)
    if wait_s > 1e-3:
        assert bucket.wait_s(now + wait_s / 2, per_minute) > 0


@given(st.integers(1, 200), st.floats(0, 1e4), st.floats(0, 1e4))
def test_a_clock_that_stands_or_goes_back_forgets_nothing(per_minute: int, amount: float, back: float) -> None:
    bucket = Bucket().plus(amount, 1e4, per_minute)
    assert bucket.level(1e4 - back, per_minute) == bucket.level(1e4, per_minute) == amount


def key(**limits: int) -> Key:
    return Key.model_validate({"name": "alice", "sha256": "a" * 64, **limits})


class Bench:
    def __init__(self) -> None:
        self.now = 0.0
        self.limits = Limits(lambda: self.now)

    def ask(self, asked: Key, tokens: int = 0) -> None:
        usage = Usage(completion_tokens=tokens)
        with self.limits.request(asked, usage):
            pass

    def wait_s(self, asked: Key) -> float:
        with pytest.raises(Limited) as caught:
            self.ask(asked)
        assert caught.value.reason == "RATE_LIMIT_EXCEEDED"
        return caught.value.retry_after_s


def test_requests_a_minute() -> None:
    bench, limited = Bench(), key(requests_per_minute=3)
    for _ in range(3):
        bench.ask(limited)
    assert bench.wait_s(limited) == pytest.approx(20)
    bench.now += 20
    bench.ask(limited)
    assert bench.wait_s(limited) == pytest.approx(20)


def test_refused_requests_cost_nothing() -> None:
    bench, limited = Bench(), key(requests_per_minute=1)
    bench.ask(limited)
    for _ in range(100):
        assert bench.wait_s(limited) == pytest.approx(60)


def test_tokens_are_paid_after_the_answer_and_may_overdraw() -> None:
    bench, limited = Bench(), key(tokens_per_minute=60)
    bench.ask(limited, tokens=180)
    assert bench.wait_s(limited) == pytest.approx(121)
    bench.now += 121
    bench.ask(limited)


def test_requests_at_a_time() -> None:
    bench, limited = Bench(), key(concurrent=2)
    with ExitStack() as running:
        for _ in range(2):
            running.enter_context(bench.limits.request(limited, Usage()))
        assert bench.wait_s(limited) == 1
    bench.ask(limited)


def test_a_request_that_fails_gives_its_place_back() -> None:
    bench, limited = Bench(), key(concurrent=1)
    with pytest.raises(ZeroDivisionError), bench.limits.request(limited, Usage()):
        raise ZeroDivisionError
    bench.ask(limited)


def test_keys_are_counted_apart_and_a_new_limit_holds_at_once() -> None:
    bench = Bench()
    bench.ask(key(requests_per_minute=1))
    bench.ask(Key(name="bob", sha256="b" * 64, requests_per_minute=1))
    bench.ask(key(requests_per_minute=2))
    assert bench.wait_s(key(requests_per_minute=2)) == pytest.approx(30)
    bench.ask(key())


def test_choices_of_one_prompt_pay_for_it_once() -> None:
    usage, ask = Usage(), Ask("m", "prompt", Sampling())
    for _ in range(3):
        usage.note_prompt(ask, 7)
    usage.note_prompt(Ask("m", "another", Sampling()), 5)
    assert usage.prompt_tokens == 12
