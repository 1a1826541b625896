"""Preloading: patterns come in beside what runs, and never at a request's cost; over a real engine and real slots."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.engines import ManagedBench, managed_bench, pattern, prompt

from premoe_runtime.formats.errors import InvalidInput, Unavailable

A, B, WIDE = pattern("a", range(5)), pattern("b", range(5, 10)), pattern("wide", range(7))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[ManagedBench]:
    with managed_bench(tmp_path, slots=6) as opened:
        yield opened
        opened.store.check_integrity()


def test_a_preloaded_pattern_costs_its_first_request_nothing(bench: ManagedBench) -> None:
    report = bench.front.preload(A)
    assert report is not None
    assert report.blobs == 10
    again = bench.front.preload(A)
    assert again is not None
    assert again.blobs == 0
    collector, started = bench.submit(A, prompt(8), max_tokens=2)
    collector.wait()
    assert started.reports[0].blobs == 0
    assert bench.front.residency().loaded_patterns == ()


def test_what_has_no_room_beside_a_running_pattern_waits(bench: ManagedBench) -> None:
    running, _ = bench.submit(A, prompt(8), max_tokens=40)
    running.wait_first()
    assert bench.front.preload(B) is None
    assert running.wait().last.finish == "length"
    assert bench.front.stats().pauses == 0
    report = bench.front.preload(B)
    assert report is not None
    assert report.blobs == 10


def test_requests_displace_it_and_it_comes_back(bench: ManagedBench) -> None:
    bench.front.preload(A)
    bench.run(B, prompt(8), max_tokens=2)
    report = bench.front.preload(A)
    assert report is not None
    assert report.blobs > 0
    collector, started = bench.submit(A, prompt(8), max_tokens=2)
    collector.wait()
    assert started.reports[0].blobs == 0


def test_a_pattern_wider_than_the_slots_is_refused(bench: ManagedBench) -> None:
    with pytest.raises(InvalidInput, match="use a smaller budget, a set made for this split, or more slots"):
        bench.front.preload(WIDE)


def test_a_draining_worker_preloads_nothing(bench: ManagedBench) -> None:
    bench.front.drain(0)
    with pytest.raises(Unavailable):
        bench.front.preload(A)


def test_a_fault_of_the_source_is_told_and_the_next_try_works(bench: ManagedBench) -> None:
    def fail(*_: object) -> None:
        raise Unavailable("the store is gone")

    bench.source.on_blob = fail
    with pytest.raises(Unavailable, match="the store is gone"):
        bench.front.preload(A)
    bench.source.on_blob = lambda *_: None
    assert bench.front.preload(A) is not None
