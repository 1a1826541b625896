"""What a pattern that arrives cold costs those who decode, and its own first token: vLLM behind a front.

    make bench-arrival [ARGS="--rounds 15 --threads 2 --json FILE"]

The random model of ``throughput``. Eight streams decode under one pattern. Then a request comes under another one, none
of whose experts is in a slot or in host memory: they are fetched from the store, checked, packed and published while
the streams go on. Seconds between two tokens of a stream, as the front hands them out, are compared over four windows
of a round: quiet; from the arrival to the moment when its experts are published; a request under a pattern that is
there already, which has the same prompt to compute; and an unrelated load on the processor, as much as the swap took.
What is added to the first token is held against a start of the engine with all experts.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from _load import Load, load, thread_seconds
from _report import Report, json_option
from _worker import CONTEXT, Worker, pack_of, part, set_up, worker
from throughput import EXPERTS, LAYERS, PROMPT_TOKENS, TOP_K, WIDTHS

from premoe_runtime.engines.base import TokenEvent
from premoe_runtime.serving.reports import SwapReport
from premoe_runtime.serving.requests import KeptPattern

STREAMS, STARTS, WARM_UPS = 8, 2, 3
QUIET_SECONDS, PAUSE_SECONDS = 1.0, 0.25


class Streams:
    """Requests that decode on and on, and when each of their tokens came."""

    def __init__(self, peer: Worker, pattern: KeptPattern, count: int) -> None:
        self._times: list[list[float]] = [[] for _ in range(count)]
        self._began, self._ended = threading.Semaphore(0), threading.Semaphore(0)
        self.error: Exception | None = None
        answer = CONTEXT - PROMPT_TOKENS
        self._handles = [
            peer.send(pattern, PROMPT_TOKENS, answer, partial(self._on_event, index)) for index in range(count)
        ]
        for _ in range(count):
            self._began.acquire()

    def _on_event(self, index: int, event: TokenEvent) -> None:
        if not self._times[index]:
            self._began.release()
        self._times[index].append(time.perf_counter())
        if event.last:
            self.error = self.error or event.error
            self._ended.release()

    def gaps(self, start: float, end: float) -> list[float]:
        """Seconds between two tokens of a stream, of those that ended in the window."""
        pairs = (pair for times in self._times for pair in itertools.pairwise(times))
        return [after - before for before, after in pairs if start <= after < end]

    def close(self) -> None:
        """Raises what a stream failed with, and RuntimeError for one that ended before."""
        early = any(len(times) >= CONTEXT - PROMPT_TOKENS for times in self._times)
        for handle in self._handles:
            handle.cancel()
        for _ in self._handles:
            self._ended.acquire()
        if self.error is not None:
            raise self.error
        if early:
            raise RuntimeError("a stream ended before its round did; this machine is too quick for these figures")


@dataclass
class Window:
    """Of one round; ``threads``: processor seconds of each thread of vLLM's process, ``own`` of this one."""

    start: float
    end: float
    threads: dict[int, float]
    own: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass
class Found:
    """Of every round, by kind of window or phase; ``shares``: cores that its swap took."""

    gaps: dict[str, list[list[float]]] = field(default_factory=lambda: defaultdict(list))
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    shares: list[float] = field(default_factory=list)
    blobs: int = 0


class Arrivals:
    """Rounds on one worker, whose slots hold the streams' pattern and one more."""

    def __init__(self, peer: Worker, kept: int) -> None:
        self._peer, self._kept, self._turn = peer, kept, 0
        self._of_streams = part(0, kept)

    def streams(self) -> Streams:
        return Streams(self._peer, self._of_streams, STREAMS)

    def next_cold(self) -> KeptPattern:
        """Neither in slots nor in host memory: others have been there since."""
        self._turn += 1
        return part(1 + self._turn % (EXPERTS // self._kept - 1), self._kept)

    def arrive(self, pattern: KeptPattern) -> tuple[Window, float, SwapReport]:
        """One request of one token. Returns the window until its experts were published, when its token was there, and
        what the swap moved.
        """
        done, told = threading.Event(), list[tuple[float, SwapReport]]()
        errors = list[Exception]()

        def on_event(event: TokenEvent) -> None:
            if event.error is not None:
                errors.append(event.error)
            if event.last:
                done.set()

        def send() -> float:
            self._peer.send(pattern, PROMPT_TOKENS, 1, on_event, lambda r: told.append((time.perf_counter(), r)))
            done.wait()
            return time.perf_counter()

        window, first = self.during(send)
        if errors:
            raise errors[0]
        window.end = told[0][0]
        return window, first, told[0][1]

    def during(self, what: Callable[[], Any]) -> tuple[Window, Any]:
        before, own, start = thread_seconds(self._peer.pid), time.process_time(), time.perf_counter()
        answer = what()
        end, own_after, after = time.perf_counter(), time.process_time(), thread_seconds(self._peer.pid)
        used = {thread: seconds - before.get(thread, 0.0) for thread, seconds in after.items()}
        return Window(start, end, used, own_after - own), answer


def one_round(arrivals: Arrivals, found: Found, other: Load | None) -> None:
    """``other``: the unrelated load, once it is known how much is to be taken."""
    streams = arrivals.streams()
    quiet, _ = arrivals.during(lambda: time.sleep(QUIET_SECONDS))
    pattern = arrivals.next_cold()
    cold, first, report = arrivals.arrive(pattern)
    time.sleep(PAUSE_SECONDS)
    warm, warm_first, _ = arrivals.arrive(pattern)
    time.sleep(PAUSE_SECONDS)
    if other is not None:
        other.on.set()
        loaded, _ = arrivals.during(lambda: time.sleep(cold.seconds))
        other.on.clear()
        found.gaps["loaded"].append(streams.gaps(loaded.start, loaded.end))
    streams.close()
    found.gaps["quiet"].append(streams.gaps(quiet.start, quiet.end))
    found.gaps["cold"].append(streams.gaps(cold.start, cold.end))
    found.gaps["prompt"].append(streams.gaps(warm.start, warm_first))
    found.seconds["first_token_cold"].append(first - cold.start)
    found.seconds["first_token_warm"].append(warm_first - warm.start)
    for phase in report.phases:
        found.seconds[f"swap_{phase.name}"].append(phase.milliseconds / 1e3)
    found.shares.append(swap_share(quiet, cold, first - cold.start))
    found.blobs = report.blobs_fetched


def swap_share(quiet: Window, cold: Window, seconds: float) -> float:
    """Cores that a swap took: threads of vLLM's process that sleep in quiet, and what this process did more."""
    idle = {thread for thread, used in quiet.threads.items() if used < 0.02 * quiet.seconds}
    theirs = sum(used for thread, used in cold.threads.items() if thread in idle or thread not in quiet.threads)
    own = cold.own - quiet.own / quiet.seconds * seconds
    return (theirs + max(0.0, own)) / cold.seconds


def start_of_all(pack: str, threads: int) -> tuple[float, float]:
    """Seconds of an engine's start with slots for all experts, and until they are filled after that."""
    began = time.perf_counter()
    with worker(pack, slots=EXPERTS, sequences=STREAMS + 1, threads=threads, host_blobs=LAYERS * EXPERTS) as peer:
        ready = time.perf_counter()
        peer.front.preload(part(0, EXPERTS))
        return ready - began, time.perf_counter() - ready


def tell(report: Report, found: Found) -> None:
    """Ratios over all rounds, and the medians of each round's own, which a drifting machine disturbs less."""
    for kind, rounds in found.gaps.items():
        every = [gap for gaps in rounds for gap in gaps]
        p50, p99 = np.percentile(every, [50, 99])
        report.values[f"between_tokens_{kind}"] = {"p50_s": p50, "p99_s": p99, "max_s": max(every), "n": len(every)}
    for kind, than in (("cold", "quiet"), ("loaded", "quiet"), ("cold", "loaded"), ("prompt", "quiet")):
        for percent in (50, 99):
            pairs = zip(found.gaps[kind], found.gaps[than], strict=True)
            of_rounds = [np.percentile(these, percent) / np.percentile(those, percent) for these, those in pairs]
            over, under = (report.values[f"between_tokens_{each}"][f"p{percent}_s"] for each in (kind, than))
            report.values[f"p{percent}_{kind}_over_{than}"] = {
                "all": over / under,
                "rounds": float(np.median(of_rounds)),
            }
    medians = {name: report.samples(name, seconds) for name, seconds in found.seconds.items()}
    added = medians["first_token_cold"] - medians["first_token_warm"]
    report.values |= {"swap_cores": float(np.median(found.shares)), "swap_blobs": found.blobs, "added_s": added}
    report.values["added_over_start_and_fill"] = added / (medians["start"] + medians["fill"])
    report.values["added_over_fill"] = added / medians["fill"]


@click.command()
@click.option("--rounds", type=click.IntRange(min=3), default=15, show_default=True)
@click.option("--dtype", type=click.Choice(sorted(WIDTHS)), default="float32", show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True, help="Of vLLM.")
@click.option("--kept", type=click.IntRange(1, EXPERTS // 4), default=EXPERTS // 8, show_default=True)
@json_option
def main(rounds: int, dtype: str, threads: int, kept: int, json_file: Path | None) -> None:
    """Eight streams, and a pattern that arrives cold."""
    set_up(threads)
    found, warm_up = Found(), Found()
    with ExitStack() as stack:
        pack = stack.enter_context(pack_of(dtype))
        for _ in range(STARTS):
            start, fill = start_of_all(pack, threads)
            found.seconds["start"].append(start)
            found.seconds["fill"].append(fill)
        settings = {"layers": LAYERS, "experts": EXPERTS, "top_k": TOP_K, "dtype": dtype, "threads": threads}
        report = Report("a cold pattern arrives", settings | {"streams": STREAMS, "kept": kept, "slots": 2 * kept})
        # Less than two patterns: none is left in host memory when its turn comes again.
        room = worker(pack, slots=2 * kept, sequences=STREAMS + 1, threads=threads, host_blobs=LAYERS * kept * 3 // 2)
        arrivals = Arrivals(stack.enter_context(room), kept)
        for _ in range(WARM_UPS):
            one_round(arrivals, warm_up, None)
        other = stack.enter_context(load(float(np.median(warm_up.shares))))
        report.values["loaded_cores"] = other.share
        for _ in range(rounds):
            one_round(arrivals, found, other)
        tell(report, found)
    report.finish(json_file)


if __name__ == "__main__":
    main()
