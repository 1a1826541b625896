"""Figures of a run, against sums by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from premoe_local.bench.outcome import Outcome
from premoe_local.bench.picture import run_picture
from premoe_local.bench.report import Result, document, error_rows, latency_rows, task_rows, total_rows
from premoe_local.bench.summary import METRICS, Distribution, ErrorCount, keeps, summarise

# Due at 1 s, sent 0.5 s late, first text 1 s after it was due, two more 0.2 s apart, end 1.5 s after it was due.
ANSWER = Outcome("sql", 1.0, 1.5, 2.5, (2.0, 2.2, 2.4), 10, 3)
SHORT = Outcome("sql", 0.0, 0.0, 0.5, (0.25,), 10, 1)
SILENT = Outcome("mail", 0.0, 0.0, 0.25, (), 10, 0)
LOST = Outcome("mail", 0.0, 0.0, 4.0, (0.5,), 0, 1, "cut", "the connection closed")
BUSY = Outcome("mail", 0.0, 0.0, 0.1, (), 0, 0, "429", "slow down")


def test_latencies_count_from_when_a_call_was_due() -> None:
    assert (ANSWER.ttft_s, ANSWER.e2e_s) == (1.0, 1.5)
    assert ANSWER.tpot_s == pytest.approx(0.2)
    assert ANSWER.gaps_s == pytest.approx((0.2, 0.2))
    assert (SHORT.tpot_s, SHORT.gaps_s) == (None, ())
    assert (SILENT.ttft_s, SILENT.tpot_s) == (0.25, None)


def test_a_run_by_hand() -> None:
    summary = summarise([ANSWER, SHORT, SILENT, LOST, BUSY, BUSY], {"ttft": 300.0, "e2e": 1e4}, 4.0)
    assert (summary.seconds, summary.ok, summary.failed) == (4.0, 3, 3)
    assert (summary.prompt_tokens, summary.completion_tokens) == (30, 4)
    assert summary.rate(summary.ok) == 0.75
    assert summary.good == 2
    assert summary.errors == {"429": ErrorCount(2, "slow down"), "cut": ErrorCount(1, "the connection closed")}
    counts = {metric: spread.count if spread else 0 for metric, spread in summary.latency.items()}
    assert counts == {"ttft": 3, "itl": 2, "tpot": 1, "e2e": 3}
    ttft = summary.latency["ttft"]
    assert ttft is not None
    assert (ttft.mean, ttft.percentiles[0], ttft.largest) == pytest.approx((500.0, 250.0, 1000.0))
    assert summary.late is not None
    assert summary.late.largest == pytest.approx(500.0)
    assert list(summary.tasks) == ["mail", "sql"]


@pytest.mark.parametrize(
    ("name", "limit", "kept"),
    [("ttft", 1000, True), ("ttft", 999, False), ("tpot", 201, True), ("tpot", 199, False), ("e2e", 1499, False)],
)
def test_promises(name: str, limit: float, kept: bool) -> None:
    assert keeps(ANSWER, {name: limit}) is kept  # type: ignore[dict-item]
    assert keeps(ANSWER, {name: limit, "e2e": 1.0}) is False  # type: ignore[dict-item]


def test_nothing_at_all_has_figures() -> None:
    summary = summarise([], {"ttft": 1.0}, 0.0)
    assert (summary.seconds, summary.rate(0), summary.good, summary.late) == (0.0, 0.0, 0, None)
    assert set(summary.latency.values()) == {None}
    assert task_rows(summary) == error_rows(summary) == []
    assert all(set(row[1:]) == {""} for row in latency_rows(summary))
    assert run_picture([], "none").startswith(b"\x89PNG")


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_percentiles_rise_and_stay_between_the_ends(seconds: list[float]) -> None:
    spread = Distribution.of(seconds)
    assert spread is not None
    places = [min(seconds) * 1e3, *spread.percentiles, spread.largest]
    assert all(earlier <= later or earlier == pytest.approx(later) for earlier, later in pairwise(places))
    assert spread.largest == pytest.approx(max(seconds) * 1e3)


def test_the_report_tells_what_happened() -> None:
    outcomes = [ANSWER, SHORT, LOST]
    summary = summarise(outcomes, {"ttft": 300.0}, 4.0)
    result = Result({"base_url": "http://x", "model": "m"}, {"ttft": 300.0}, 9, 2, outcomes, summary)
    rows = dict(total_rows(result))
    assert rows["requests answered"] == "2 of 9"
    assert rows["requests open when stopped"] == "2"
    assert rows["goodput, requests/s with ttft ≤ 300 ms"] == "0.25 (33.3%)"
    assert error_rows(summary) == [("cut", 1, "the connection closed")]
    assert task_rows(summary)[0] == ("sql", 2, "625.0", "200.0", "1000.0")
    told = document(result)
    assert told["requests"] == {"planned": 9, "ok": 2, "failed": 1, "unfinished": 2}
    assert told["goodput"] == {"count": 1, "requests_per_s": 0.25}
    assert set(told["latency_ms"]) == set(METRICS)  # type: ignore[call-overload]
    assert [one["due"] for one in told["samples"]] == [0.0, 0.0, 1.0]  # type: ignore[attr-defined]


def test_a_picture_has_failures_too() -> None:
    whole = run_picture([ANSWER, SHORT], "m")
    assert whole != run_picture([ANSWER, SHORT, replace(LOST, due=3.0)], "m")
    assert run_picture([ANSWER], "m", "svg").startswith(b"<?xml")
