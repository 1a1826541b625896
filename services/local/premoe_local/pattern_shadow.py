"""`premoe patterns shadow`: another set on the signatures that retrieval recorded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from premoe_local.console import date, json_option, print_json, print_table, progress
from premoe_local.retrieval_option import tls_options
from premoe_runtime.formats.errors import NotFound
from premoe_runtime.formats.pattern_set import PatternSet
from premoe_runtime.offline.patterns.library import resolve
from premoe_runtime.offline.patterns.shadow import (
    UNKNOWN,
    Comparison,
    Sample,
    Trial,
    check_same_signatures,
    trials,
)
from premoe_runtime.storage import Store, open_store

if TYPE_CHECKING:
    from premoe.patterns.v1 import patterns_pb2 as pb
    from premoe_servicekit.tls import Tls


@click.command("shadow")
@click.argument("store_url")
@click.argument("name", metavar="SET")
@click.option(
    "--retrieval",
    "addresses",
    metavar="HOST:PORT",
    multiple=True,
    required=True,
    help="Retrieval service that records signatures (--record-signatures); repeat it for more replicas.",
)
@click.option(
    "--examples", type=click.IntRange(0), default=3, show_default=True, help="To show of each change, the latest."
)
@json_option
@tls_options
def shadow(store_url: str, name: str, addresses: Sequence[str], examples: int, as_json: bool, tls: Tls | None) -> None:
    """Compare what SET would have decided on the last requests with what the live set decided.

    Nothing that serves is touched. Requests are there as routing signatures only; their text is kept nowhere.
    """
    store = open_store(store_url)
    candidate = PatternSet.load(store.get, resolve(store, "sets", name))
    samples = _samples(addresses, candidate, tls)
    _check_signatures(store, candidate, samples)
    comparison = Comparison(examples)
    with progress("deciding", len(samples), quiet=as_json) as bar:
        for trial in trials(candidate, reversed(samples)):
            comparison.note(trial)
            bar.advance()
    if as_json:
        print_json(_document(candidate, comparison))
    else:
        _print(candidate, comparison)


def _samples(addresses: Sequence[str], candidate: PatternSet, tls: Tls | None) -> list[Sample]:
    """What all replicas recorded for the candidate's weights, oldest first. Raises NotFound where that is nothing."""
    from premoe_local.retrieval_client import retrieval

    found: list[Sample] = []
    silent = []
    for address in addresses:
        with retrieval(address, tls) as service:
            recorded, capacity = service.signatures(candidate.weights_id)
        found += map(_sample, recorded)
        if not capacity:
            silent.append(address)
    if not found:
        why = (
            f"retrieval {', '.join(silent)} records none, start it with --record-signatures"
            if silent
            else "no request came in since it started, or the set is of another model"
        )
        raise NotFound(
            f"no signatures of weights {candidate.weights_id[:16]} to try set {candidate.set_id[:16]} on: {why}",
            reason="NO_SIGNATURES",
        )
    return sorted(found, key=lambda sample: sample.at)


def _sample(recorded: pb.RecordedSignature) -> Sample:
    from premoe.patterns.v1 import patterns_pb2 as pb
    from premoe_servicekit.signatures import read_signatures

    recognised = recorded.decision == pb.DECISION_SPECIALIST
    return Sample(
        recorded.unix_ms / 1000,
        recorded.set_id,
        read_signatures(recorded),
        recorded.task if recognised else UNKNOWN,
        recorded.task,
        recorded.score,
    )


def _check_signatures(store: Store, candidate: PatternSet, samples: Iterable[Sample]) -> None:
    for set_id in {sample.set_id for sample in samples}:
        with suppress(NotFound):
            check_same_signatures(candidate, PatternSet.load(store.get, set_id))


def _document(candidate: PatternSet, comparison: Comparison) -> dict[str, Any]:
    return {
        "set_id": candidate.set_id,
        "weights_id": candidate.weights_id,
        "signatures": comparison.signatures,
        "decided_by": dict(comparison.sets),
        **_counts(comparison.outcomes),
        "tasks": [{"task": task or None, **_counts(outcomes)} for task, outcomes in comparison.tasks()],
        "changes": [
            {
                "from": before or None,
                "to": now or None,
                "signatures": count,
                "examples": [_example(trial) for trial in comparison.examples.get((before, now), ())],
            }
            for (before, now), count in comparison.changes
        ],
    }


def _counts(outcomes: Any) -> dict[str, int]:
    return {
        "same": outcomes["same"],
        "other_task": outcomes["other"],
        "no_longer_recognised": outcomes["lost"],
        "newly_recognised": outcomes["gained"],
    }


def _example(trial: Trial) -> dict[str, Any]:
    best = trial.decision.matches[0] if trial.decision.matches else None
    return {
        "at": date(trial.sample.at),
        "nearest_before": trial.sample.nearest,
        "score_before": trial.sample.score,
        "nearest_now": trial.decision.task,
        "score_now": trial.decision.score,
        "cutoff_now": None if best is None else best.cutoff,
    }


def _print(candidate: PatternSet, comparison: Comparison) -> None:
    rows = [
        (task or "unknown", sum(outcomes.values()), *_counts(outcomes).values())
        for task, outcomes in comparison.tasks()
    ]
    columns = ("decided", "requests", "same", "other task", "no longer recognised", "newly recognised")
    print_table(f"Set {candidate.set_id[:16]} on {comparison.signatures} requests", columns, rows)
    changes = [
        (before or "unknown", now or "unknown", count, *_cells(trial))
        for (before, now), count in comparison.changes
        for trial in comparison.examples.get((before, now), ())
    ]
    if changes:
        parts = ("decided", "would be", "requests", "at", "nearest then", "nearest now", "cutoff")
        print_table("Changes, with the latest of each", parts, changes)
    share = comparison.outcomes["same"] / comparison.signatures
    click.echo(f"{comparison.outcomes['same']} of {comparison.signatures} decided alike ({share:.1%})")


def _cells(trial: Trial) -> tuple[str, str, str, str]:
    told = _example(trial)
    return (
        told["at"],
        f"{told['nearest_before']} {told['score_before']:.4f}",
        f"{told['nearest_now']} {told['score_now']:.4f}",
        "-" if told["cutoff_now"] is None else f"{told['cutoff_now']:.4f}",
    )
