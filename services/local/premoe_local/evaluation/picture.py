"""Figures of an evaluation as pictures: what is kept at which size, the contest, the matrices across tasks."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

matplotlib.use("Agg")

DPI = 110
Document = dict[str, Any]


def pictures(document: Document) -> dict[str, bytes]:
    """PNG files by name; only those that there are figures for."""
    made: dict[str, Figure] = {}
    if document["counted"]:
        made["retained.png"] = retained(document)
    if document["matrix"] and document["counted"]:
        made["matrix.png"] = matrices(document["matrix"])
    return {name: _png(figure) for name, figure in made.items()}


def retained(document: Document) -> Figure:
    """Left: retained accuracy by size and score. Right: the retrieved specialist beside static sets of equal bytes."""
    figure = Figure(figsize=(12, 6.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    lines: dict[str, list[tuple[float, list[float]]]] = {}
    for row in document["kept"]:
        if row["way"] == "served" or (row["way"] == "own" and row["allocation"] == "uniform"):
            name = f"{row['score']}, {'as served' if row['way'] == 'served' else 'uniform'}"
            lines.setdefault(name, []).append((row["percent"], row["retained"]))
    _lines(left, lines, "right specialist, by score and split")
    lines = {}
    for one in document["contest"]:
        for entrant in one["entrants"]:
            lines.setdefault(entrant["name"], []).append((one["percent"], entrant["retained"]))
    _lines(right, lines, "contest at equal bytes")
    left.set_ylabel("retained accuracy, % of the full model")
    return figure


def matrices(matrix: Document) -> Figure:
    """What each task's experts give on every task; what every task keeps without them."""
    names = matrix["tasks"]
    width = 1.8 + 0.75 * len(names)
    figure = Figure(figsize=(2 * width + 1, 0.9 * width), layout="constrained")
    for axes, key, title in zip(
        figure.subplots(1, 2),
        ("retained", "without"),
        (f"experts of the row alone ({matrix['percent']:g} %)", "every expert but the row's"),
        strict=True,
    ):
        values = np.array([[np.nan if one is None else one[0] for one in line] for line in matrix[key]])
        axes.imshow(values, vmin=0, vmax=100, cmap="cividis")
        for (row, column), value in np.ndenumerate(values):
            text, colour = ("–", "black") if np.isnan(value) else (f"{value:.0f}", "black" if value > 60 else "white")
            axes.text(column, row, text, ha="center", va="center", fontsize=9, color=colour)
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
        axes.set_yticks(range(len(names)), names)
        axes.set(title=title, xlabel="prompts of")
    return figure


def _lines(axes: Any, lines: dict[str, list[tuple[float, list[float]]]], title: str) -> None:
    for name, points in lines.items():
        shares = [percent for percent, _ in points]
        value, low, high = np.array([found for _, found in points]).T
        axes.errorbar(shares, value, yerr=_errors(value, low, high), marker="o", ms=4, capsize=3, label=name)
    axes.set_xscale("log", base=2)
    shown = sorted({percent for points in lines.values() for percent, _ in points})
    axes.set_xticks(shown, [f"{percent:g}" for percent in shown])
    axes.set(title=title, xlabel="experts kept, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)


def _errors(value: Sequence[float], low: Sequence[float], high: Sequence[float]) -> np.ndarray[Any, Any]:
    return np.maximum([np.subtract(value, low), np.subtract(high, value)], 0)


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    # Without metadata the same figures give the same bytes on every run.
    figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()
