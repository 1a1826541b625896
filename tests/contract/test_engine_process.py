"""An engine in a child process: how it fails, dies and ends, and what then becomes of everybody else."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support import doomed_engines
from support.engines import (
    WAIT_SECONDS,
    Bench,
    FrontBench,
    Ground,
    Reports,
    child_bench,
    child_engine,
    ground,
    pattern,
    prompt,
    ranked_engine,
    tiny_engine,
)
from support.tiny import tiny_checkpoint

from premoe_runtime.engines.child import engine as child
from premoe_runtime.engines.child.engine import ChildEngine
from premoe_runtime.engines.child.main import Build
from premoe_runtime.engines.child.ranked import RankedEngine
from premoe_runtime.engines.child.wire import Failed, encode
from premoe_runtime.formats.errors import (
    Conflict,
    CorruptData,
    Exhausted,
    InvalidInput,
    NotFound,
    PremoeError,
    Unavailable,
)
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.serving.front import Front

pytestmark = pytest.mark.timeout(300)  # the first child waits for a fork server that imports torch

A, B = pattern("a", range(4)), pattern("b", range(8, 12))
KILLED = "the engine process was killed by SIGKILL"


def is_gone(pid: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 4 * WAIT_SECONDS
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def maps_of(pid: int | str) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


@contextmanager
def fronted(folder: Path, **options: Any) -> Iterator[tuple[FrontBench, int]]:
    """A front before a child, and the child's pid; afterwards it is gone."""
    made = ground(folder, rows=0, slots=6, host_blobs=16)
    engine = child_engine(partial(tiny_engine, made.folder, made.shape.slots, made.arena, {}))
    front = Front(engine, made.shape, made.arena, made.source, retry_seconds=(), **options)
    try:
        yield FrontBench(front, engine, made.source), engine.pid
    finally:
        front.close()
    assert is_gone(engine.pid)


def test_the_host_tier_is_one_memory_in_both_processes(tmp_path: Path) -> None:
    with child_bench(tmp_path) as bench:
        assert isinstance(bench.engine, ChildEngine)
        assert "premoe-host-tier" in maps_of(bench.engine.pid)


@pytest.mark.parametrize("kind", [InvalidInput, NotFound, Conflict, CorruptData, Unavailable, Exhausted])
def test_every_kind_of_error_comes_out_as_it_went_in(kind: type[PremoeError]) -> None:
    import pickle

    error = kind("the text", reason="SOME_REASON")
    error.add_note("a hint")
    came = pickle.loads(encode(Failed(error))).error
    assert (type(came), str(came), came.reason, came.exit_code) == (kind, "the text", "SOME_REASON", kind.exit_code)
    assert came.__notes__ == ["a hint"]


def loading_error(build: Build) -> BaseException:
    with pytest.raises(Exception) as caught:
        child_engine(build)
    return caught.value


def test_what_loading_raises_is_raised_here(tmp_path: Path) -> None:
    made = ground(tmp_path)
    error = loading_error(partial(tiny_engine, made.folder, made.shape.slots, made.arena, {"context": 100_000}))
    assert isinstance(error, InvalidInput)
    assert error.reason == "CONTEXT_INVALID"
    lost = loading_error(doomed_engines.unpicklable_failure)
    assert (type(lost), str(lost)) == (RuntimeError, "Local: no room for a thought")


def test_a_child_that_dies_while_it_loads_is_one_line(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path)
    for build, line in (
        (partial(doomed_engines.killed_while_loading, checkpoint), KILLED),
        (doomed_engines.leaving_while_loading, "the engine process ended by itself with exit code 3"),
    ):
        error = loading_error(build)
        assert isinstance(error, Unavailable)
        assert str(error).startswith(line)
        assert "while it loaded the model" in str(error)
        assert "\n" not in str(error)


def test_a_child_that_dies_in_mid_stream_ends_every_request_once(tmp_path: Path) -> None:
    with fronted(tmp_path) as (bench, pid):
        running = [bench.submit(A, prompt(4, seed=index), max_tokens=900)[0] for index in range(2)]
        for one in running:
            one.wait_first()
        waiting, _ = bench.submit(B, prompt(4), max_tokens=5)
        os.kill(pid, signal.SIGKILL)
        for one in (*running, waiting):
            one.wait()
            assert [event.last for event in one.events].count(True) == 1
            assert isinstance(one.last.error, Unavailable)
            assert KILLED in str(one.last.error)
        reason = bench.front.ended.result(WAIT_SECONDS)
        assert isinstance(reason, Unavailable)
        assert str(reason).startswith(KILLED)
        with pytest.raises(Unavailable):
            bench.submit(A, prompt(4))


def test_a_child_that_dies_in_mid_swap_fails_who_waits_for_it(tmp_path: Path) -> None:
    # At this pace the first blob alone takes longer than the test.
    with fronted(tmp_path, copy_rate=1.0) as (bench, pid):
        assert isinstance(bench.engine, ChildEngine)
        waiting, started = bench.submit(A, prompt(4), max_tokens=5)
        wait_until(lambda: len(bench.source.blobs_read) == 8)
        time.sleep(0.2)
        assert not started.reports
        with ThreadPoolExecutor() as pool:
            loading = pool.submit(bench.front.load_pattern, B)
            wait_until(lambda: len(bench.source.blobs_read) == 16)
            os.kill(pid, signal.SIGKILL)
            assert KILLED in str(waiting.wait().last.error)
            assert KILLED in str(loading.exception(WAIT_SECONDS))
        assert not started.reports


def ranks_over(made: Ground, fault: str = "") -> RankedEngine:
    return ranked_engine(lambda member: partial(doomed_engines.of_ranks, made.folder, made.arena, fault, member), 2)


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [("raise", InvalidInput, "rank 1 has no device"), ("die", Unavailable, KILLED)],
)
def test_ranks_are_ready_together_or_not_at_all(tmp_path: Path, fault: str, kind: type[PremoeError], said: str) -> None:
    before = set(Path(tempfile.gettempdir()).glob("premoe-ranks-*"))
    with pytest.raises(kind, match=said):
        ranks_over(ground(tmp_path), fault)
    wait_until(lambda: not multiprocessing.active_children())
    assert set(Path(tempfile.gettempdir()).glob("premoe-ranks-*")) <= before


def test_a_check_and_a_copy_are_over_when_they_are_on_every_rank(tmp_path: Path) -> None:
    made = ground(tmp_path, slots=4)
    engine = ranks_over(made)
    bench = Bench(engine, made.arena, made.source, made.folder, made.kept[:0], Reports())
    engine.start(bench.reports)
    try:
        bench.boundary()
        bench.slots[ExpertId(0, 3)] = 1
        loaded = bench.load(bench.place(ExpertId(0, 3), 0))
        assert (loaded.copied.written, loaded.copied.error) == (frozenset({ExpertId(0, 3)}), None)
        bench.boundary()
    finally:
        engine.close()
    assert all(map(is_gone, engine.pids))


@pytest.mark.parametrize("rank", [0, 1])
def test_with_one_rank_all_end(tmp_path: Path, rank: int) -> None:
    made = ground(tmp_path, slots=4)
    engine, reports = ranks_over(made), Reports()
    engine.start(reports)
    os.kill(engine.pids[rank], signal.SIGKILL)
    wait_until(lambda: bool(reports.ended))
    (ended,) = reports.ended
    assert isinstance(ended.error, Unavailable)
    assert str(ended.error).startswith(f"rank {rank} of 2: {KILLED}")
    wait_until(lambda: all(map(is_gone, engine.pids)))
    engine.close()


def test_signals_to_the_group_are_left_to_the_parent(tmp_path: Path) -> None:
    with child_bench(tmp_path) as bench:
        assert isinstance(bench.engine, ChildEngine)
        running = bench.submit(prompt(4), max_tokens=300).wait_first()
        os.kill(bench.engine.pid, signal.SIGTERM)
        os.kill(bench.engine.pid, signal.SIGINT)
        assert running.wait().last.finish in ("stop", "length")


def test_a_child_that_does_not_answer_is_killed_at_the_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "_CLOSE_SECONDS", 0.2)
    monkeypatch.setattr(child, "_DEATH_SECONDS", 0.5)
    with child_bench(tmp_path) as bench:
        assert isinstance(bench.engine, ChildEngine)
        os.kill(bench.engine.pid, signal.SIGSTOP)
        bench.engine.close()
        wait_until(lambda: bool(bench.reports.ended))
        assert is_gone(bench.engine.pid)


@pytest.mark.parametrize("builder", ["idle", "loading_for_ever"])
def test_a_parent_that_is_killed_takes_its_child_along(tmp_path: Path, builder: str) -> None:
    pid_file = tmp_path / "pid"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "support.killed_parent", builder, str(pid_file)]
    with subprocess.Popen(command, env=environment) as parent:
        wait_until(pid_file.exists)
        pid = int(pid_file.read_text())
        assert not is_gone(pid)
        parent.kill()
        wait_until(lambda: is_gone(pid))
