"""The soak: which outcomes it excuses, which processes it calls grown, and a short one of its own."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.soak.calls import CHAT, Call
from support.soak.client import CUT, FAILED, LATE, LEFT, UNANSWERED, Answer, Outcome
from support.soak.faults import Fault, schedule
from support.soak.footprint import GROWTH_BYTES, Footprint, grown
from support.soak.verdict import SETTLE_S, complaint

ROOT = Path(__file__).parents[2]
ASKED = Call("prompt 1", CHAT, {"messages": []})
ANSWER = Answer("yes", "stop", "ab")
KNOWN = {("prompt 1", "ab"): ANSWER}
DEATH = Fault("store", killed=100.0, again=105.0)
STORE = "worker: expert store 127.0.0.1:1: Socket closed"


def outcome(code: int | str = 200, call: Call = ASKED, began: float = 101.0, **fields: object) -> Outcome:
    made = Outcome(call, began, began + 1.0, code, answer=ANSWER if code == 200 else None)
    return replace(made, **fields)  # type: ignore[arg-type]


EXCUSED = {
    "an answer as before": outcome(),
    "an answer to what nobody knew": outcome(call=replace(ASKED, name=""), answer=Answer("no", "stop", "cd")),
    "a client that left": outcome(LEFT, replace(ASKED, leaves_s=0.1)),
    "a deadline": outcome(LATE, replace(ASKED, deadline_s=0.1)),
    "a refusal": outcome(404, replace(ASKED, status=404)),
    "the store while it is away": outcome(503, said=STORE),
    "the store in a stream": outcome(FAILED, said=STORE),
    "the store when it is just back": outcome(503, began=105.0 + SETTLE_S, said=STORE),
}
NOT_EXCUSED = {
    "another answer": outcome(answer=Answer("no", "stop", "ab")),
    "another end": outcome(answer=Answer("yes", "length", "ab")),
    "another pattern": outcome(answer=Answer("yes", "stop", "cd")),
    "an answer to what is wrong": outcome(200, replace(ASKED, status=404)),
    "a deadline that nobody set": outcome(LATE),
    "no end": outcome(UNANSWERED, said=STORE),
    "a stream that was cut": outcome(CUT, said=STORE),
    "a fault of ours": outcome(500, said=STORE),
    "something else while the store is away": outcome(503, said="no worker"),
    "the store before it died": outcome(503, began=98.0, said=STORE),
    "the store long after": outcome(503, began=105.1 + SETTLE_S, said=STORE),
}


@pytest.mark.parametrize("case", EXCUSED.values(), ids=EXCUSED.keys())
def test_what_is_excused(case: Outcome) -> None:
    assert complaint(case, [DEATH], KNOWN) is None


@pytest.mark.parametrize("case", NOT_EXCUSED.values(), ids=NOT_EXCUSED.keys())
def test_what_is_not(case: Outcome) -> None:
    assert complaint(case, [DEATH], KNOWN) is not None


def test_redis_is_no_excuse() -> None:
    assert complaint(outcome(503, said=STORE), [replace(DEATH, victim="redis")], KNOWN) is not None


SMALL = Footprint(private=10 << 20, shared=0, files=20, threads=4)


@pytest.mark.parametrize("field", ["private", "shared", "files", "threads"])
def test_a_process_that_grew_is_named(field: str) -> None:
    now = replace(SMALL, **{field: getattr(SMALL, field) + GROWTH_BYTES + 1})
    (line,) = grown({"worker": SMALL, "store": SMALL}, {"worker": now, "store": SMALL})
    assert line.startswith(f"worker: {field} went from ")


def test_a_process_that_is_gone_is_named() -> None:
    assert grown({"worker": SMALL}, {}) == ["worker: the process is gone"]


@given(st.integers(0, 1000), st.floats(10, 3600), st.floats(10, 600))
def test_both_victims_go_one_after_another_and_are_back_before_the_end(seed: int, seconds: float, every: float) -> None:
    planned = schedule(random.Random(seed), seconds, every)
    assert {victim for _, victim, _ in planned} == {"store", "redis"}
    moments = [moment for due, _, down in planned for moment in (due, due + down)]
    assert moments == sorted(moments)
    assert moments[0] > 0
    assert moments[-1] < 0.9 * seconds


def soaking(arguments: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks", "soak", "--tasks", "2", "--clients", "6", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.timeout(900)
def test_a_short_soak_finds_nothing(tmp_path: Path) -> None:
    report = tmp_path / "soak.json"
    process = soaking(["--minutes", "0.5", "--json", str(report)])
    _, said = process.communicate()
    assert process.returncode == 0, said
    values = json.loads(report.read_text())["values"]
    assert values["complaints"] == []
    assert values["ran"] == "whole"
    assert values["ended and started again"] == {"store": 2, "redis": 2}
    assert values["answers compared"] > 0
    assert values["blobs swapped in"] > 0


@pytest.mark.timeout(900)
def test_ctrl_c_ends_the_load_and_leaves_no_process(tmp_path: Path) -> None:
    process = soaking(["--minutes", "30"])
    assert process.stderr is not None
    while "min, " not in (line := process.stderr.readline()):
        assert line, "it ended"
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    out, said = process.communicate()
    assert process.returncode == 0, said
    assert "to Ctrl-C" in out
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []
