"""A run as a picture: how latencies are spread, and how they went over time."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from premoe_local.bench.outcome import Outcome

matplotlib.use("Agg")

DPI = 130


def run_picture(outcomes: Sequence[Outcome], title: str, kind: str = "png") -> bytes:
    """Left: the share of requests, and of gaps, that took at most so long. Right: every request when it was due."""
    whole = [outcome for outcome in outcomes if outcome.ok]
    failed = [outcome for outcome in outcomes if not outcome.ok]
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.suptitle(title)
    series = {
        "first token": [outcome.ttft_s for outcome in whole],
        "whole answer": [outcome.e2e_s for outcome in whole],
        "between tokens": [gap for outcome in whole for gap in outcome.gaps_s],
    }
    for name, seconds in series.items():
        values = np.sort(np.asarray(seconds)) * 1e3
        if len(values):
            left.step(values, np.arange(1, len(values) + 1) / len(values), where="post", label=name)
    left.set(xlabel="ms", ylabel="share at most so long", ylim=(0, 1), xscale="log")
    for name, count in (("first token", 0), ("whole answer", 1)):
        right.scatter([one.due for one in whole], np.asarray(series[name]) * 1e3, s=10, label=name, color=f"C{count}")
    if failed:
        right.scatter(
            [one.due for one in failed], [one.e2e_s * 1e3 for one in failed], marker="x", c="C3", label="failed"
        )
    right.set(xlabel="seconds since the beginning", ylabel="ms")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    out = io.BytesIO()
    figure.savefig(out, format=kind, dpi=DPI)
    return out.getvalue()
