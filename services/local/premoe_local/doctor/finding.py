"""A finding: what was looked at, how it is, why that matters, and how to change it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "error", "skipped"]
"""``error``: something fails, or will. ``warning``: it works, and slower or nearer to an end than it need be."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One check. ``why`` names the measured factor and ``source`` where that is from; both empty where all is well."""

    check: str
    state: State
    found: str
    why: str = ""
    change: str = ""
    source: str = ""


def ok(check: str, found: str) -> Finding:
    return Finding(check, "ok", found)


def skipped(check: str, found: str, why: str = "", change: str = "", source: str = "") -> Finding:
    """What could not be looked at, or was not asked for."""
    return Finding(check, "skipped", found, why, change, source)


def worst(findings: Iterable[Finding]) -> State:
    """The worst state; nothing at all is ok."""
    order: tuple[State, ...] = ("error", "warning", "ok")
    states = {finding.state for finding in findings}
    return next((state for state in order if state in states), "ok")
