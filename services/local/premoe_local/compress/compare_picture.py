"""A comparison of methods as a picture: what is kept at which size, and how far from the full model it is."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

matplotlib.use("Agg")

DPI = 110
NAME = "compression.png"
_STYLES = {"random": ("0.5", ":"), "select": ("black", "--")}
"""Colour and line of the peers; retrieval's are thick."""


def pictures(document: Mapping[str, Any]) -> dict[str, bytes]:
    """PNG files by name; none where nothing was measured."""
    lines: dict[str, list[tuple[float, Mapping[str, Any]]]] = {}
    for budget in document["budgets"]:
        for one in budget["entrants"]:
            if "refused" not in one:
                lines.setdefault(one["name"], []).append((one["percent"], one))
    if not lines:
        return {}
    panels = [("kl", "KL to the full model, nats a token")]
    if document["counted"]:
        panels = [("retained", "retained accuracy, % of the full model"), *panels]
    figure = Figure(figsize=(6.2 * len(panels), 5.6), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for each, (key, title) in zip(axes, panels, strict=True):
        for name, points in lines.items():
            _line(each, name, [(percent, one[key]) for percent, one in points])
        _scales(each, sorted({budget["percent"] for budget in document["budgets"]}), title)
    axes[-1].set_yscale("log")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=8)
    out = io.BytesIO()
    # Without metadata the same figures give the same bytes on every run.
    figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return {NAME: out.getvalue()}


def _line(axes: Any, name: str, points: list[tuple[float, list[float]]]) -> None:
    percents = [percent for percent, _ in points]
    value, low, high = np.array([found for _, found in points]).T
    colour, style = _STYLES.get(name, (None, "-"))
    axes.errorbar(
        percents,
        value,
        yerr=np.maximum([value - low, high - value], 0),
        marker="o",
        ms=4,
        capsize=3,
        color=colour,
        linestyle=style,
        linewidth=2.6 if name.startswith("retrieval") else 1.4,
        label=name,
    )


def _scales(axes: Any, shown: list[float], title: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(shown, [f"{percent:g}" for percent in shown])
    axes.set(title=title, xlabel="experts' bytes, %")
    axes.grid(alpha=0.3)
