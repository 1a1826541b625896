"""Carries a recipe out, model by model, with a bar over them all; what was measured before is taken up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from premoe_local.console import note, progress
from premoe_local.evaluation.recipe import Recipe
from premoe_local.full_model import model_to_measure
from premoe_runtime.offline.evaluation.data import TaskData
from premoe_runtime.offline.evaluation.journal import Journal
from premoe_runtime.offline.evaluation.plan import Scope
from premoe_runtime.offline.evaluation.sweep import Results, profiled, sweep
from premoe_runtime.packs.reader import PackReader
from premoe_runtime.storage import open_store


def measure(
    recipe: Recipe,
    readers: Sequence[PackReader],
    data: Mapping[str, TaskData],
    scope: Scope,
    state: Path,
    *,
    threads: int | None,
    memory: int | None,
    spool: Path | None,
    say: Callable[[str], None],
) -> list[Results]:
    """Of every model, one in memory at a time. ``state`` keeps what was measured. Raises like ``sweep``."""
    state.mkdir(parents=True, exist_ok=True)
    journal, store = Journal(state / "cells.jsonl"), open_store(str(state))
    try:
        with progress("evaluating", total=1.0, counts=False) as bar:

            def of_model(number: int) -> Results:
                def stage(what: str, share: float) -> None:
                    where = f", model {number + 1} of {len(readers)}" if len(readers) > 1 else ""
                    bar.update(description=what + where, completed=(number + share) / len(readers))

                reader = readers[number]
                model = model_to_measure(
                    reader,
                    memory=memory,
                    threads=threads,
                    device=recipe.device,
                    dtype=recipe.dtype,
                    purpose="evaluated",
                    scores=profiled(scope, reader.manifest().family),
                )
                return sweep(model, data, scope, store=store, journal=journal, spool=spool, stage=stage, say=say)

            return [of_model(number) for number in range(len(readers))]
    except KeyboardInterrupt:
        note(f"stopped; what was measured lies in {state}, and the same command goes on from there")
        raise
