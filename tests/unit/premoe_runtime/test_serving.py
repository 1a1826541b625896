"""The serving loop: swaps before requests, turns, faults, cancels, pins; over a real engine and real slots."""

from __future__ import annotations

import contextvars
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from premoe_worker.domain import AnswerFormat, Ask
from support.engines import (
    EXPERTS,
    LAYERS,
    TOP_K,
    WAIT_SECONDS,
    Collector,
    ManagedBench,
    managed_bench,
    pattern,
    prompt,
)
from support.grammars import grammar_of

from premoe_runtime.engines.base import TokenEvent
from premoe_runtime.engines.grammar import Grammars, Matcher
from premoe_runtime.formats.errors import Conflict, CorruptData, Exhausted, InvalidInput, PremoeError, Unavailable
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.serving.requests import KeptPattern

A, B, C = pattern("a", range(5)), pattern("b", range(5, 10)), pattern("c", range(3, 8))
LONG: dict[str, Any] = {"max_tokens": 40}


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., ManagedBench]]:
    with ExitStack() as stack:

        def start(**options: Any) -> ManagedBench:
            bench = stack.enter_context(managed_bench(tmp_path, **options))
            stack.callback(bench.store.check_integrity)
            stack.callback(bench.host.check_integrity)
            return bench

        yield start


class Hold:
    """Stops a thread at a place until it is let go, and tells when it got there."""

    def __init__(self) -> None:
        self.reached, self._go = threading.Event(), threading.Event()

    def __call__(self, *_: object) -> None:
        self.reached.set()
        assert self._go.wait(WAIT_SECONDS)

    def go(self) -> None:
        self._go.set()

    def wait(self) -> None:
        assert self.reached.wait(WAIT_SECONDS)


def refusal(bench: ManagedBench, asked: KeptPattern) -> PremoeError:
    """Why a request is refused, whether at once or as its only event."""
    try:
        collector, _ = bench.submit(asked, prompt(4))
    except PremoeError as error:
        return error
    (event,) = collector.wait().events
    assert isinstance(event.error, PremoeError)
    return event.error


def test_the_first_request_brings_its_experts_and_the_next_finds_them(opened: Callable[..., ManagedBench]) -> None:
    bench = opened(slots=6)
    first, started = bench.submit(A, prompt(8), max_tokens=4)
    assert first.wait().last.finish == "length"
    (report,) = started.reports
    blob = bench.store.shape.blob_bytes
    assert (report.blobs, report.bytes, report.evicted) == (10, 10 * blob, 0)
    assert (report.blobs_fetched, report.bytes_fetched) == (10, 10 * blob)
    assert report.generation == bench.front.residency().generation == 1
    assert [phase.name for phase in report.phases] == ["fetch", "plan", "retire", "copy", "publish"]
    assert report.milliseconds > 0
    again, started = bench.submit(A, prompt(9), max_tokens=4)
    again.wait()
    (report,) = started.reports
    assert (report.blobs, report.phases, report.milliseconds, report.generation) == (0, (), 0.0, 1)
    assert len(bench.source.blobs_read) == 10


def test_only_missing_blobs_move_and_host_memory_saves_fetches(opened: Callable[..., ManagedBench]) -> None:
    bench = opened(slots=5)
    bench.run(A, prompt(8), max_tokens=2)
    collector, started = bench.submit(C, prompt(8), max_tokens=2)
    collector.wait()
    assert (started.reports[0].blobs, started.reports[0].evicted) == (6, 6)
    collector, started = bench.submit(A, prompt(8), max_tokens=2)
    collector.wait()
    assert (started.reports[0].blobs, started.reports[0].bytes_fetched) == (6, 0)


def test_requests_waiting_for_one_swap_count_it_once(opened: Callable[..., ManagedBench]) -> None:
    bench = opened(slots=6)
    hold = Hold()
    bench.source.on_blob = hold
    jobs = [bench.submit(A, prompt(8, seed=index), max_tokens=2) for index in range(3)]
    hold.go()
    reports = [started.reports[0] for collector, started in jobs if collector.wait()]
    assert [report.blobs for report in reports] == [10, 0, 0]
    assert reports[1].milliseconds == reports[0].milliseconds > 0


def test_decoding_goes_on_while_another_pattern_is_copied(opened: Callable[..., ManagedBench]) -> None:
    bench = opened(slots=10)
    hold = Hold()
    running, _ = bench.submit(A, prompt(8), **LONG)
    running.wait_first()
    bench.source.on_blob = hold
    joining, _ = bench.submit(B, prompt(8), max_tokens=3)
    hold.wait()
    # The copy stands still in mid-swap, and the running sequence comes to its end.
    assert len(running.wait().tokens) == 40
    assert not joining.events
    hold.go()
    assert joining.wait().last.finish == "length"
    assert bench.front.stats().pauses == 0


def test_a_request_of_a_running_pattern_does_not_wait_for_a_swap(opened: Callable[..., ManagedBench]) -> None:
    bench = opened(slots=10)
    running, _ = bench.submit(A, prompt(8), **LONG)
    running.wait_first()
    hold = Hold()
    bench.source.on_blob = hold
    joining, _ = bench.submit(B, prompt(8), max_tokens=3)
    hold.wait()
    assert bench.run(A, prompt(5), max_tokens=3).last.finish == "length"
    hold.go()
    joining.wait()


@pytest.mark.slow
def test_patterns_that_do_not_fit_take_turns_and_nothing_changes_for_them(opened: Callable[..., ManagedBench]) -> None:
    bench = opened(slots=6, quantum=4, max_sequences=2)
    jobs = [(each, prompt(7, seed=index)) for index, each in enumerate((A, B, C, A, B))]
    alone = [bench.run(each, asked, **LONG).tokens for each, asked in jobs]
    before = bench.front.stats()
    together = [bench.submit(each, asked, **LONG)[0] for each, asked in jobs]
    assert [job.wait().tokens for job in together] == alone
    after = bench.front.stats()
    assert after.pauses > before.pauses + 3
    assert after.host_hits - before.host_hits == after.blobs_loaded - before.blobs_loaded > 0
    assert all(after.phase_ns[phase] > before.phase_ns[phase] for phase in ("plan", "retire", "copy", "publish"))
    assert after.phase_ns["fetch"] == before.phase_ns["fetch"] > 0
    assert after.bytes_fetched == before.bytes_fetched, "paused patterns keep their blobs in host memory"
    assert not any(bench.host.is_pinned(ExpertId(0, expert)) for expert in range(EXPERTS))


def test_a_short_request_is_served_while_a_long_one_of_another_pattern_runs(
    opened: Callable[..., ManagedBench],
) -> None:
    bench = opened(slots=6, quantum=4, context=1024)
    long, _ = bench.submit(A, prompt(7), max_tokens=900)
    long.wait_first()
    assert len(bench.run(B, prompt(7), max_tokens=12).tokens) == 12
    assert not long.ended.is_set()
    long.cancel()
    assert long.wait().last.finish == "cancelled"


def test_a_request_that_waits_for_its_grammar_holds_no_other_pattern_up(
    opened: Callable[..., ManagedBench], monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_, hold = Grammars.compile, Hold()

    def held(grammars: Grammars, text: str) -> Matcher:
        hold()
        return compile_(grammars, text)

    monkeypatch.setattr(Grammars, "compile", held)
    bench = opened(slots=6, quantum=4)
    wanted = grammar_of(Ask("", format=AnswerFormat(json.dumps({"const": [1]}), strict=True)))
    shaped, _ = bench.submit(A, prompt(7), grammar=wanted, max_tokens=40)
    hold.wait()
    assert len(bench.run(B, prompt(7), max_tokens=12).tokens) == 12
    assert len(bench.run(A, prompt(7), max_tokens=12).tokens) == 12, "a neighbour without a grammar waits for none"
    assert not shaped.events
    hold.go()
    assert json.loads(shaped.wait().text) == [1]


@pytest.mark.parametrize(("fault", "error"), [("failing", Unavailable), ("corrupt", CorruptData)])
def test_a_failed_fetch_fails_its_request_only(
    opened: Callable[..., ManagedBench], fault: str, error: type[Exception]
) -> None:
    bench = opened(slots=10, context=1024)
    running, _ = bench.submit(A, prompt(8), max_tokens=900)
    running.wait_first()
    getattr(bench.source, fault).add(ExpertId(1, 7))
    failed, started = bench.submit(B, prompt(8), max_tokens=3)
    assert isinstance(failed.wait().last.error, error)
    assert failed.last.finish is None
    assert not started.reports
    assert not running.ended.is_set()
    assert bench.front.stats().failed_swaps == 1
    bench.front.check_integrity()
    getattr(bench.source, fault).clear()
    assert bench.run(B, prompt(8), max_tokens=3).last.finish == "length"
    running.cancel()
    assert running.wait().last.error is None


def test_a_paused_sequence_whose_experts_cannot_come_back_fails(opened: Callable[..., ManagedBench]) -> None:
    # A host tier of two blobs keeps nothing, so a paused pattern is fetched again.
    bench = opened(slots=6, quantum=4, context=1024, host_bytes=0)
    paused, _ = bench.submit(A, prompt(7), max_tokens=900)
    paused.wait_first()
    other, _ = bench.submit(B, prompt(7), max_tokens=900)
    other.wait_first()
    bench.source.failing.add(ExpertId(0, 0))
    assert isinstance(paused.wait().last.error, Unavailable)
    other.cancel()
    other.wait()
    bench.source.failing.clear()
    assert bench.run(A, prompt(7), max_tokens=2).last.finish == "length"


def test_cancel_in_mid_swap(opened: Callable[..., ManagedBench]) -> None:
    bench = opened(slots=6)
    bench.run(A, prompt(5), max_tokens=2)
    hold = Hold()
    bench.source.on_blob = hold
    cancelled, started = bench.submit(B, prompt(8), max_tokens=3)
    hold.wait()
    cancelled.cancel()
    assert cancelled.wait().last.finish == "cancelled"
    assert not started.reports
    hold.go()
    bench.source.on_blob = lambda expert: None
    assert bench.run(A, prompt(5), max_tokens=2).last.finish == "length"
    assert bench.run(B, prompt(5), max_tokens=2).last.finish == "length"
    assert bench.front.residency().waiting == 0


def test_a_swap_goes_on_while_somebody_wants_it(opened: Callable[..., ManagedBench]) -> None:
    bench = opened(slots=6)
    hold = Hold()
    bench.source.on_blob = hold
    first, _ = bench.submit(A, prompt(8), max_tokens=3)
    hold.wait()
    second, started = bench.submit(A, prompt(8), max_tokens=3)
    first.cancel()
    hold.go()
    assert first.wait().last.finish == "cancelled"
    assert second.wait().last.finish == "length"
    assert started.reports[0].blobs == 10


def test_the_queue_is_bounded(opened: Callable[..., ManagedBench]) -> None:
    bench = opened(slots=6, max_waiting=2)
    hold = Hold()
    bench.source.on_blob = hold
    jobs = [bench.submit(A, prompt(4), max_tokens=2)[0] for _ in range(2)]
    assert refusal(bench, A).reason == "QUEUE_FULL"
    hold.go()
    for job in jobs:
        job.wait()
    assert bench.run(A, prompt(4), max_tokens=2).last.finish == "length"


def test_full_needs_a_slot_for_every_expert(opened: Callable[..., ManagedBench]) -> None:
    full = KeptPattern.full(np.ones((LAYERS, EXPERTS), np.bool_))
    with pytest.raises(Conflict) as caught:
        opened(slots=6).submit(full, prompt(4))
    assert caught.value.reason == "FULL_NEEDS_ALL_SLOTS"
    answer = opened(slots=EXPERTS).run(full, prompt(4), max_tokens=3)
    assert answer.last.retained_mass == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("kept", "reason"),
    [
        (np.ones((LAYERS + 1, EXPERTS), dtype=np.bool_), "PATTERN_SHAPE"),
        (np.ones((LAYERS, EXPERTS), dtype=np.bool_), "SLOTS_TOO_FEW"),
        (np.eye(1, EXPERTS, dtype=np.bool_).repeat(2, 0) & [[True], [False]], "PATTERN_EMPTY"),
    ],
)
def test_patterns_that_cannot_run_here_are_refused(opened: Callable[..., ManagedBench], kept: Any, reason: str) -> None:
    bench = opened(slots=6)
    with pytest.raises(InvalidInput) as caught:
        bench.submit(KeptPattern("x", kept), prompt(4))
    assert caught.value.reason == reason


def test_bad_prompts_that_nobody_checked_are_refused_by_the_engine(opened: Callable[..., ManagedBench]) -> None:
    bench = opened(slots=6)
    for token_ids, options in (([], {}), (prompt(4), {"active": TOP_K + 1}), (prompt(4), {"top_p": 2.0})):
        refused, _ = bench.submit(A, token_ids, **options)
        assert isinstance(refused.wait().last.error, InvalidInput)
    assert (bench.front.residency().waiting, bench.front.stats().swaps) == (0, 1)
    assert bench.run(A, prompt(4), max_tokens=2).last.finish == "length"


def test_request_ids_are_unique_while_in_use(opened: Callable[..., ManagedBench]) -> None:
    bench = opened(slots=6)
    hold = Hold()
    bench.source.on_blob = hold
    request = bench.request(A, prompt(4), max_tokens=2)
    collector = Collector(request.request_id)
    bench.front.generate(request, lambda report: None, collector)
    twin = Collector(request.request_id)
    bench.front.generate(request, lambda report: None, twin)
    assert isinstance(twin.wait().last.error, Conflict)
    hold.go()
    assert collector.wait().last.finish == "length"


def test_equal_experts_under_two_names_are_one_pattern(opened: Callable[..., ManagedBench]) -> None:
    bench = opened(slots=6)
    bench.run(A, prompt(4), max_tokens=2)
    twin, started = bench.submit(KeptPattern("twin", A.kept.copy()), prompt(4), max_tokens=2)
    twin.wait()
    assert started.reports[0].blobs == 0


def test_more_patterns_than_mask_rows_share_them_in_time(opened: Callable[..., ManagedBench]) -> None:
    bench = opened(slots=EXPERTS, max_rows=2, context=1024)
    many = [pattern(f"p{index}", range(index, index + 4)) for index in range(6)]
    tokens = [bench.run(each, prompt(6), max_tokens=6).tokens for each in many]
    assert [bench.run(each, prompt(6), max_tokens=6).tokens for each in many] == tokens
    jobs = [bench.submit(each, prompt(6), max_tokens=900)[0] for each in many[:2]]
    assert refusal(bench, many[2]).reason == "PATTERNS_EXHAUSTED"
    for job in jobs:
        job.cancel()
        assert job.wait().last.finish == "cancelled"
    assert bench.run(many[2], prompt(6), max_tokens=6).tokens == tokens[2]


def test_patterns_of_single_requests_leave_half_the_rows_to_others(opened: Callable[..., ManagedBench]) -> None:
    bench = opened(slots=EXPERTS, max_rows=2, context=1024)
    one, other = (KeptPattern("a", pattern("a", range(n, n + 4)).kept, one_request=True) for n in (0, 1))
    job, _ = bench.submit(one, prompt(6), max_tokens=900)
    assert refusal(bench, other).reason == "PATTERNS_EXHAUSTED"
    bench.run(pattern("b", range(4)), prompt(6), max_tokens=2)
    bench.run(pattern("b", range(4, 8)), prompt(6), max_tokens=2)
    job.cancel()
    job.wait()
    bench.run(other, prompt(6), max_tokens=2)


def test_load_pattern_saves_the_swap(opened: Callable[..., ManagedBench]) -> None:
    bench = opened(slots=6)
    assert bench.front.load_pattern(A).blobs == 10
    assert bench.front.load_pattern(A).blobs == 0
    assert bench.front.residency().loaded_patterns == ("a",)
    assert all(bench.host.is_pinned(expert) and expert in bench.host for expert in bench.resident())
    collector, started = bench.submit(A, prompt(4), max_tokens=2)
    collector.wait()
    assert started.reports[0].blobs == 0
    bench.run(B, prompt(4), max_tokens=2)
    collector, started = bench.submit(A, prompt(4), max_tokens=2)
    collector.wait()
    assert (started.reports[0].bytes > 0, started.reports[0].bytes_fetched) == (True, 0)
    bench.front.unload_pattern("a")
    bench.front.unload_pattern("a")
    assert not any(bench.host.is_pinned(expert) for expert in bench.resident())
    assert bench.front.residency().loaded_patterns == ()


def test_load_pattern_says_when_it_cannot(opened: Callable[..., ManagedBench]) -> None:
    small = opened(slots=6, host_bytes=0)
    with pytest.raises(Exhausted, match="host"):
        small.front.load_pattern(A)
    bench = opened(slots=6)
    bench.source.failing.add(ExpertId(0, 2))
    with pytest.raises(Unavailable):
        bench.front.load_pattern(A)
    assert bench.front.residency().loaded_patterns == ()
    assert not any(bench.host.is_pinned(ExpertId(0, expert)) for expert in range(EXPERTS))


def test_drain_refuses_new_requests_and_waits_for_the_others(opened: Callable[..., ManagedBench]) -> None:
    bench = opened(slots=6, context=1024)
    running, _ = bench.submit(A, prompt(4), max_tokens=900)
    running.wait_first()
    assert bench.front.drain(0.0) == 1
    assert refusal(bench, A).reason == "DRAINING"
    running.cancel()
    assert bench.front.drain(WAIT_SECONDS) == 0
    assert running.ended.is_set()


def test_residency_tells_what_lies_where(opened: Callable[..., ManagedBench]) -> None:
    bench = opened(slots=6, context=1024)
    running, _ = bench.submit(A, prompt(4), max_tokens=900)
    running.wait_first()
    seen = bench.front.residency()
    assert [sorted(row) for row in seen.slots] == [[-1, 0, 1, 2, 3, 4]] * LAYERS
    assert (seen.running, seen.waiting, seen.running_patterns, seen.generation) == (1, 0, ("a",), 1)
    assert seen.device_bytes == LAYERS * 6 * bench.store.shape.blob_bytes
    assert seen.host_bytes == bench.host.arena.num_bytes
    running.cancel()
    running.wait()
    assert bench.front.residency().running_patterns == ()


def test_a_fetch_runs_in_the_context_of_its_request(opened: Callable[..., ManagedBench]) -> None:
    bench = opened(slots=6)
    variable = contextvars.ContextVar("variable", default="none")
    seen: list[str] = []
    bench.source.on_blob = lambda expert: seen.append(variable.get())
    variable.set("mine")
    bench.run(A, prompt(4), max_tokens=2)
    assert set(seen) == {"mine"}


def test_close_ends_everything(opened: Callable[..., ManagedBench]) -> None:
    bench = opened(slots=6, quantum=1000, context=1024)
    running, _ = bench.submit(A, prompt(4), max_tokens=900)
    running.wait_first()
    waiting, _ = bench.submit(B, prompt(4), max_tokens=3)
    bench.front.close()
    assert running.wait().last.finish == "cancelled"
    assert waiting.wait().last.finish == "cancelled"
    with pytest.raises(Unavailable):
        bench.submit(A, prompt(4))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_random_traffic_with_faults_and_cancels(opened: Callable[..., ManagedBench], seed: int) -> None:
    bench = opened(slots=7, quantum=3, max_sequences=3, max_rows=4, host_bytes=bench_host_bytes())
    random = np.random.default_rng(seed)
    many = [
        pattern(f"p{i}", *random.permuted(np.tile(np.arange(EXPERTS), (2, 1)), axis=1)[:, : 3 + i % 4].tolist())
        for i in range(6)
    ]
    asked = [prompt(int(random.integers(1, 30)), seed=i) for i in range(6)]
    expected = [bench.run(each, tokens, max_tokens=8).tokens for each, tokens in zip(many, asked, strict=True)]
    jobs: list[tuple[int, Collector]] = []
    for _ in range(50):
        choice = int(random.integers(6))
        jobs.append((choice, bench.submit(many[choice], asked[choice], max_tokens=8)[0]))
        match int(random.integers(5)):
            case 0:
                jobs[int(random.integers(len(jobs)))][1].cancel()
            case 1:
                bench.source.failing = {ExpertId(int(random.integers(2)), int(random.integers(EXPERTS)))}
            case 2:
                bench.source.failing = set()
            case 3:
                bench.front.check_integrity()
            case _:
                pass
    ends = [(choice, job.wait()) for choice, job in jobs]
    for choice, job in ends:
        if job.last.finish in ("length", "stop"):
            assert job.tokens == expected[choice]
        else:
            assert job.last.finish == "cancelled" or isinstance(job.last.error, Unavailable | Exhausted)
            assert job.tokens == expected[choice][: len(job.tokens)]
    assert sum(job.last.finish == "length" for _, job in ends) > 10
    assert bench.front.drain(WAIT_SECONDS) == 0
    seen = bench.front.residency()
    assert (seen.running, seen.waiting, seen.running_patterns) == (0, 0, ())
    bench.source.failing = set()
    bench.front.check_integrity()


@pytest.mark.parametrize("seed", range(3))
def test_patterns_that_share_experts_pass_through_little_host_memory(
    opened: Callable[..., ManagedBench], seed: int
) -> None:
    """What one holds there while it waits, and another brings into slots meanwhile, is in nobody's way."""
    bench = opened(slots=8, quantum=2, max_sequences=3, host_bytes=bench_host_bytes())
    random = np.random.default_rng(seed)
    many = [
        pattern(f"p{i}", *random.permuted(np.tile(np.arange(EXPERTS), (2, 1)), axis=1)[:, :7].tolist())
        for i in range(7)
    ]
    jobs = [
        bench.submit(many[int(random.integers(7))], prompt(6, seed=i), max_tokens=int(random.integers(2, 30)))[0]
        for i in range(60)
    ]
    assert {job.wait().last.finish for job in jobs} <= {"length", "stop"}


def bench_host_bytes() -> int:
    """Room for fifteen blobs of the tiny model: less than its 32 experts."""
    return 15 * 28672


def test_an_event_receiver_may_submit(opened: Callable[..., ManagedBench]) -> None:
    bench = opened(slots=6)
    followers: list[Collector] = []

    def follow(event: TokenEvent) -> None:
        if event.last:
            followers.append(bench.submit(A, prompt(4), max_tokens=2)[0])

    bench.run(A, prompt(4), gate=follow, max_tokens=2)
    assert followers[0].wait().last.finish == "length"


def test_a_look_is_bounded_and_the_last_step_is_told_while_the_loop_hangs(opened: Callable[..., ManagedBench]) -> None:
    bench = opened(slots=6)
    bench.run(A, prompt(7), max_tokens=3)
    hold = Hold()
    job = bench.front.generate(bench.request(A, prompt(5), max_tokens=2), hold, lambda event: None)
    assert hold.reached.wait(WAIT_SECONDS)
    with pytest.raises(TimeoutError):
        bench.front.look(timeout=0.05)
    assert bench.front.last_step.completion_tokens >= 3
    assert bench.front.last_step.prompt_tokens >= 7
    hold.go()
    job.cancel()
    assert bench.front.look()[1].swaps == 1
