"""Pictures of patterns: what a task scores where, and how much tasks share."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.pattern import Pattern
from premoe_runtime.offline.patterns.derive import overlap

matplotlib.use("Agg")

DPI = 130
_RINGS = (("black", 2.0), ("white", 0.8))
"""Colour and width: one on the other shows on every background."""


def picture_format(path: Path) -> str:
    """What to draw for a file of this name; PNG for a name without an ending. Raises InvalidInput."""
    ending = path.suffix.removeprefix(".").lower() or "png"
    if ending not in ("png", "jpg", "jpeg", "pdf", "svg", "webp"):
        raise InvalidInput(
            f"{path}: cannot draw a .{ending} file; name a .png, .jpg, .webp, .svg or .pdf", reason="PICTURE_FORMAT"
        )
    return ending


def pattern_picture(pattern: Pattern, members: Sequence[Pattern], budget: Budget, kind: str = "png") -> bytes:
    """One picture: layer × expert heat map of ``pattern``, and the overlap of all ``members`` at ``budget``."""
    width = 3.5 + min(12.0, 0.12 * pattern.num_experts)
    figure = Figure(figsize=(width + 5.5, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(width, 5.0))
    _heat_map(figure, left, pattern, budget)
    _overlaps(figure, right, members, budget)
    out = io.BytesIO()
    figure.savefig(out, format=kind, dpi=DPI)
    return out.getvalue()


def _heat_map(figure: Figure, axes: matplotlib.axes.Axes, pattern: Pattern, budget: Budget) -> None:
    # A kept set is a prefix of a layer's ranking; scores span decades, and their colours would hardly differ.
    places = np.empty(pattern.ranking.shape)
    np.put_along_axis(places, pattern.ranking.astype(np.intp), np.arange(1.0, pattern.num_experts + 1)[None], axis=1)
    places[pattern.scores == -np.inf] = np.nan
    image = axes.imshow(places, aspect="auto", cmap="viridis_r", interpolation="nearest")
    layers, experts = np.nonzero(pattern.kept(budget))
    for colour, width in _RINGS:
        axes.scatter(experts, layers, s=12, facecolors="none", edgecolors=colour, linewidths=width)
    axes.set_title(
        f"{pattern.task}: {pattern.metric} (rings: the {budget.kept} kept of {pattern.num_experts} a layer, on average)"
    )
    axes.set_xlabel("expert")
    axes.set_ylabel("MoE layer")
    axes.set_yticks(range(0, pattern.num_layers, max(1, pattern.num_layers // 16)))
    figure.colorbar(image, ax=axes, label="place in the layer's ranking, 1 is needed most")


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
