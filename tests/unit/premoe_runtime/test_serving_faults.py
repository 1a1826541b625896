"""Faults around the serving loop: nobody pays for another's trouble, nothing is lost, and an end is said."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from support.engines import WAIT_SECONDS, ManagedBench, managed_bench, pattern, prompt

from premoe_runtime.formats.errors import CorruptData, Unavailable
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.serving.requests import KeptPattern

A, B, C = pattern("a", range(5)), pattern("b", range(5, 10)), pattern("c", range(10, 15))
Opener = Callable[..., ManagedBench]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opener]:
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(managed_bench(tmp_path, **options))


class Silence:
    """A source that says nothing about some experts until it is let go."""

    def __init__(self, bench: ManagedBench, experts: range) -> None:
        self._experts = experts
        self.reached, self.end = threading.Event(), threading.Event()
        self._fetch = bench.source.fetch
        bench.source.fetch = self  # type: ignore[method-assign, assignment]

    def __call__(self, experts: Any, into: Any, done: Any, cancelled: Any, urgent: Any) -> None:
        if any(expert.expert in self._experts for expert in experts):
            self.reached.set()
            assert self.end.wait(WAIT_SECONDS)
        self._fetch(experts, into, done, cancelled)


@pytest.mark.parametrize("fault", ["failing", "corrupt"])
def test_a_store_outage_leaves_what_is_resident(opened: Opener, fault: str) -> None:
    bench = opened(slots=6)
    expected = bench.run(A, prompt(8), max_tokens=4).tokens
    resident = bench.resident()
    getattr(bench.source, fault).update(ExpertId(layer, expert) for layer in range(2) for expert in range(16))
    error = bench.run(B, prompt(8), max_tokens=4).last.error
    assert isinstance(error, Unavailable | CorruptData)
    assert bench.resident() == resident
    collector, started = bench.submit(A, prompt(8), max_tokens=4)
    assert collector.wait().tokens == expected
    assert started.reports[0].blobs == 0
    bench.front.check_integrity()


def test_a_swap_that_fails_halfway_gives_back_what_was_not_overwritten(opened: Opener) -> None:
    """A host tier of two blobs: the swap goes through it bit by bit, and the source fails in the middle."""
    bench = opened(slots=6, host_bytes=0)
    bench.run(A, prompt(8), max_tokens=2)
    bench.source.failing = {ExpertId(1, 7)}
    assert isinstance(bench.run(B, prompt(8), max_tokens=2).last.error, Unavailable)
    bench.front.check_integrity()
    there = bench.resident()
    assert len(there) >= 10, "every slot holds an old expert or a new one"
    bench.source.failing = set()
    assert bench.run(A, prompt(8), max_tokens=2).last.finish == "length"
    assert bench.run(B, prompt(8), max_tokens=2).last.finish == "length"


def test_an_unavailable_source_is_asked_again_before_a_request_fails(opened: Opener) -> None:
    bench = opened(slots=6, retry_seconds=(0.0, 0.0))
    bench.source.failing = {ExpertId(0, 3)}
    tries: list[ExpertId] = []

    def recover(expert: ExpertId) -> None:
        tries.append(expert)
        if len(tries) > 3:
            bench.source.failing.clear()

    bench.source.on_blob = recover
    assert bench.run(A, prompt(8), max_tokens=3).last.finish == "length"
    assert bench.front.stats().failed_swaps == 0


def test_a_half_written_answer_outlives_a_source_that_fails_once(opened: Opener) -> None:
    bench = opened(slots=6, quantum=4, context=1024, host_bytes=0, retry_seconds=(0.0, 0.0, 0.0))
    expected = bench.run(A, prompt(7), max_tokens=60).tokens
    long, _ = bench.submit(A, prompt(7), max_tokens=60)
    long.wait_first()
    other, _ = bench.submit(B, prompt(7), max_tokens=30)
    other.wait_first()
    bench.source.failing = {ExpertId(0, 0)}
    seen = threading.Event()
    whole = bench.source.fetch

    def once(*arguments: Any) -> None:
        try:
            whole(*arguments)
        except Unavailable:
            bench.source.failing.clear()
            seen.set()
            raise

    bench.source.fetch = once  # type: ignore[method-assign, assignment]
    assert long.wait().tokens == expected
    assert other.wait().last.finish == "length"


@pytest.mark.parametrize("host_bytes", [0, 3 * 28672, 7 * 28672])
def test_a_swap_after_a_cancelled_one_finds_host_memory_free(opened: Opener, host_bytes: int) -> None:
    bench = opened(slots=6, host_bytes=host_bytes)
    bench.run(A, prompt(5), max_tokens=2)
    silence = Silence(bench, range(5, 10))
    for _ in range(3):
        cancelled, _ = bench.submit(B, prompt(5), max_tokens=2)
        assert silence.reached.wait(WAIT_SECONDS)
        cancelled.cancel()
        assert cancelled.wait().last.finish == "cancelled"
    silence.end.set()
    assert bench.run(B, prompt(5), max_tokens=2).last.finish == "length"
    assert bench.run(A, prompt(5), max_tokens=2).last.finish == "length"
    bench.front.check_integrity()


def test_a_pattern_that_waits_for_slow_storage_holds_nobody_up(opened: Opener) -> None:
    bench = opened(slots=6)
    bench.run(A, prompt(5), max_tokens=2)
    bench.run(B, prompt(5), max_tokens=2)
    silence = Silence(bench, range(10, 15))
    slow, _ = bench.submit(C, prompt(5), max_tokens=2)
    assert silence.reached.wait(WAIT_SECONDS)
    # Both have their blobs in host memory, and both need swaps.
    assert bench.run(A, prompt(5), max_tokens=2).last.finish == "length"
    assert bench.run(B, prompt(5), max_tokens=2).last.finish == "length"
    assert not slow.events
    silence.end.set()
    assert slow.wait().last.finish == "length"


def test_close_waits_for_no_source(opened: Opener) -> None:
    bench = opened(slots=6)
    silence = Silence(bench, range(16))
    waiting, _ = bench.submit(A, prompt(5), max_tokens=2)
    assert silence.reached.wait(WAIT_SECONDS)
    bench.front.close()
    assert waiting.wait().last.finish == "cancelled"
    assert bench.front.ended.result(0) is None
    silence.end.set()


def test_the_end_of_the_engine_ends_everything_and_is_said(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = opened(slots=10, context=1024, quantum=10**6)
    running, _ = bench.submit(A, prompt(5), max_tokens=900)
    running.wait_first()
    silence = Silence(bench, range(10, 15))
    waiting, _ = bench.submit(C, prompt(5), max_tokens=2)
    assert silence.reached.wait(WAIT_SECONDS)

    def lost(chunks: object) -> None:
        raise torch.AcceleratorError("the device is lost")

    monkeypatch.setattr(bench.engine._sequences._runner, "run", lost)
    for collector in (running, waiting):
        error = collector.wait().last.error
        assert isinstance(error, Unavailable)
        assert "the device is lost" in str(error)
    reason = bench.front.ended.result(WAIT_SECONDS)
    assert isinstance(reason, torch.AcceleratorError)
    with pytest.raises(Unavailable):
        bench.submit(A, prompt(5))
    with pytest.raises(Unavailable):
        bench.front.residency()
    with pytest.raises(Unavailable):
        bench.front.load_pattern(A)
    assert bench.front.drain(0.0) == 0
    silence.end.set()


def test_no_host_memory_to_park_in_costs_time_only(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = opened(slots=6, quantum=4, max_sequences=1, context=256)
    expected = [bench.run(each, prompt(7), max_tokens=30).tokens for each in (A, B)]

    def full(*_: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(bench.engine._sequences._pool, "park", full)
    jobs = [bench.submit(each, prompt(7), max_tokens=30)[0] for each in (A, B)]
    assert [job.wait().tokens for job in jobs] == expected
    assert bench.front.stats().pauses > 0


def test_a_receiver_that_fails_loses_only_its_own_request(opened: Opener) -> None:
    bench = opened(slots=6)

    def fail(event: object) -> None:
        raise RuntimeError("receiver gone")

    other, _ = bench.submit(A, prompt(5, seed=1), max_tokens=10)
    lost, _ = bench.submit(A, prompt(4), gate=fail, max_tokens=50)
    assert lost.wait().last.finish == "cancelled"
    assert len(other.wait().tokens) == 10


def test_looking_up_a_known_pattern_works_nothing_out_anew(opened: Opener) -> None:
    bench = opened(slots=6)
    bench.run(A, prompt(5), max_tokens=2)
    twin = KeptPattern("twin", A.kept.copy())
    bench.run(twin, prompt(5), max_tokens=2)
    assert "experts" not in vars(twin)
