"""Scores as options take them: by name, alias or threshold, and refused before anything is loaded."""

from __future__ import annotations

import click

from premoe_runtime.offline.profile.scores import find


def score_name(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    """The score's own name. Raises InvalidInput for one that is not known."""
    return None if value is None else find(value).name


def score_names(_context: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """The same of several, each once."""
    return tuple(dict.fromkeys(find(value).name for value in values))
