"""PNG pictures of patterns: what a task scores where, and how much tasks share."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.pattern import Pattern
from premoe_runtime.offline.patterns.derive import overlap

matplotlib.use("Agg")

DPI = 130


def pattern_png(pattern: Pattern, members: Sequence[Pattern], budget: Budget) -> bytes:
    """One picture: layer × expert heat map of ``pattern``, and the overlap of all ``members`` at ``budget``."""
    width = 3.5 + min(12.0, 0.12 * pattern.num_experts)
    figure = Figure(figsize=(width + 5.5, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(width, 5.0))
    _heat_map(figure, left, pattern, budget)
    _overlaps(figure, right, members, budget)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI)
    return out.getvalue()


def _heat_map(figure: Figure, axes: matplotlib.axes.Axes, pattern: Pattern, budget: Budget) -> None:
    # Layers differ in scale, and a kept set is chosen within a layer: colour is the share of the layer's best.
    scores = pattern.scores.astype(np.float64)
    best = np.abs(scores).max(axis=1, keepdims=True)
    image = axes.imshow(
        scores / np.where(best > 0, best, 1.0), aspect="auto", cmap="viridis", interpolation="nearest", vmax=1.0
    )
    kept = pattern.kept(budget)
    layers, experts = np.nonzero(kept)
    axes.scatter(experts, layers, s=9, facecolors="none", edgecolors="white", linewidths=0.7)
    axes.set_title(f"{pattern.task}: {pattern.metric} (rings: the {budget.kept} kept of {pattern.num_experts} a layer)")
    axes.set_xlabel("expert")
    axes.set_ylabel("MoE layer")
    axes.set_yticks(range(0, pattern.num_layers, max(1, pattern.num_layers // 16)))
    figure.colorbar(image, ax=axes, label="score, share of the layer's best")


def _overlaps(figure: Figure, axes: matplotlib.axes.Axes, members: Sequence[Pattern], budget: Budget) -> None:
    shares = overlap(members, budget)
    names = [pattern.task for pattern in members]
    image = axes.imshow(shares, vmin=0.0, vmax=1.0, cmap="cividis")
    for row in range(len(names)):
        for column in range(len(names)):
            value = shares[row, column]
            axes.text(
                column,
                row,
                f"{100 * value:.0f}",
                ha="center",
                va="center",
                fontsize=8,
                color="black" if value > 0.6 else "white",
            )
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    chance = budget.kept / members[0].num_experts
    axes.set_title(f"% of {budget.kept} kept experts in common (chance {100 * chance:.0f})")
    figure.colorbar(image, ax=axes)
