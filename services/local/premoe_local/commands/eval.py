"""`premoe eval`: what a stored set's patterns keep, and, as `premoe eval sweep`, what any choice of experts would."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from premoe_local.console import json_option, note, print_json, print_table, progress
from premoe_local.decided import print_decided
from premoe_local.default_group import DefaultGroup
from premoe_local.evaluation.ablate import ablate
from premoe_local.evaluation.command import sweep
from premoe_local.full_model import memory_options, model_to_measure
from premoe_local.signatures import signatures_by_task
from premoe_local.task_files import task_files
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.pattern_set import PatternSet
from premoe_runtime.formats.set_card import Decided, Retention
from premoe_runtime.offline.calibration import PassedOver, read_calibration
from premoe_runtime.offline.patterns import library
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.storage import Store

if TYPE_CHECKING:
    from premoe_runtime.offline.evaluation.variants import Outcome


@click.group("eval", cls=DefaultGroup, default="set", no_args_is_help=True)
def command() -> None:
    """Measure accuracy and perplexity at several budgets, all patterns at equal slots.

    MODEL is a pack (…/models/<id>) or an object store with one pack. The full model is measured too; one that does
    not fit into memory is read layer by layer, once for all patterns and tasks, and gives the same figures.
    Accuracy is the share of answers that greedy decoding writes exactly; perplexity is that of the given answers.
    "specialist" splits its experts over the layers as the task likes, "served" as one worker does for all tasks,
    "wrong" runs the next task's specialist. Of a set it also says what its decisions on these prompts cost in
    answers. `premoe eval sweep` compares scores, splits and static sets over several calibration seeds, on your model
    and data; `premoe eval ablate` masks out one task's own experts after the other.
    """


command.add_command(sweep)
command.add_command(ablate)


@command.command("set")
@click.argument("model")
@click.option("--data", "data", multiple=True, required=True, help="task=FILE.jsonl with answers, repeatable.")
@click.option("--budgets", required=True, help="Comma-separated, for example 4/32,4/16,4/8.")
@click.option("--set", "set_name", help="Pattern set, by id or the start of it.  [default: the live one]")
@click.option("--patterns", "pattern_names", multiple=True, help="Pattern ids or tasks instead of a set, repeatable.")
@click.option("--store", "store_url", help="Object store of the patterns.  [default: the one MODEL lies in]")
@click.option("--limit", type=click.IntRange(min=1), help="Take at most this many examples of each task.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random pattern.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.")
@click.option("--device", default="cpu", show_default=True, help="Torch device, for example cuda.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="auto",
    help="Arithmetic; on a CPU bfloat16 takes half the memory, but is slower.  "
    "[default: float32 on a CPU, else the checkpoint's]",
)
@memory_options
@click.option("--record", is_flag=True, help="Write what its generalist keeps and its decisions cost into a new set.")
@click.option("--set-live", is_flag=True, help="With --record: make the new set the live one.")
@json_option
def of_set(
    model: str,
    data: tuple[str, ...],
    budgets: str,
    set_name: str | None,
    pattern_names: tuple[str, ...],
    store_url: str | None,
    limit: int | None,
    seed: int,
    threads: int | None,
    device: str,
    dtype: str,
    memory: int | None,
    spool: Path | None,
    record: bool,
    set_live: bool,
    as_json: bool,
) -> None:
    """Measure the patterns of a stored set; `premoe eval --help` says how."""
    if record and pattern_names:
        raise InvalidInput("--record needs a set, not single --patterns", reason="RECORD_NEEDS_SET")
    if set_live and not record:
        raise InvalidInput("--set-live makes sense with --record only", reason="RECORD_NEEDS_SET")
    wanted = tuple(dict.fromkeys(Budget.parse(text) for text in budgets.split(",")))
    unused = PassedOver()
    examples = {
        task: read_calibration(path, limit=limit, passed_over=unused)
        for task, path in task_files(data, "--data").items()
    }
    from premoe_runtime.offline.evaluation.decisions import decided_runs, decisions_on, worth
    from premoe_runtime.offline.evaluation.rules import Patterns, random_pattern
    from premoe_runtime.offline.evaluation.variants import evaluate, plan_runs

    reader = open_pack(model)
    manifest = reader.manifest()
    for budget in wanted:
        budget.check(top_k=manifest.top_k, num_experts=manifest.num_experts)
    store = library.store_of(model, store_url)
    found = None if pattern_names else library.load_set(store, manifest.weights_id, set_name)
    names = pattern_names if found is None else [member.pattern_id for member in found.members]
    loaded = [library.find_pattern(store, name) for name in names]
    patterns = Patterns(
        specialists={pattern.task: pattern for pattern in loaded if pattern.kind == "specialist"},
        generalist=next((pattern for pattern in loaded if pattern.kind == "generalist"), None),
        random=random_pattern(loaded[0], seed),
        splits=found.splits if found else None,
    )
    runs = plan_runs(list(examples), wanted, patterns)
    slot_model = model_to_measure(
        reader, memory=memory, threads=threads, device=device, dtype=dtype, purpose="evaluated"
    )
    decisions = {} if found is None else decisions_on(signatures_by_task(slot_model, examples), found)
    runs += decided_runs(decisions, wanted, patterns)
    total = sum(len(examples[run.task]) for run in runs)
    with progress("evaluating", total=total) as bar:
        outcomes = list(
            evaluate(
                slot_model,
                examples,
                runs,
                spool=spool,
                advance=bar.advance,
                stage=lambda what: bar.update(description=f"evaluating {what}"),
                passed_over=unused,
            )
        )
    if unused.note:
        note(unused.note)
    decided = worth(decisions, wanted, outcomes)
    outcomes = [outcome for outcome in outcomes if outcome.run.variant != "decided"]
    recorded = _record(store, found, outcomes, wanted, decided, set_live) if record and found is not None else None
    if as_json:
        print_json(
            {
                "set_id": None if found is None else found.set_id,
                "recorded_set_id": recorded,
                **_document(outcomes),
                "decided": [one.model_dump() for one in decided],
            }
        )
        return
    _print(outcomes)
    print_decided(decided)
    if recorded is not None:
        note(f"recorded in set {recorded}" + (" (live)" if set_live else ""))


def _record(
    store: Store,
    found: PatternSet,
    outcomes: Sequence[Outcome],
    budgets: Sequence[Budget],
    decided: tuple[Decided, ...],
    live: bool,
) -> str:
    """A new set that says how much accuracy its generalist keeps at the budgets just measured, and its decisions."""
    from premoe_runtime.offline.evaluation.variants import generalist_mass, retained_accuracy

    entries = {entry.budget: entry for entry in found.document.generalist_retention}
    for budget in budgets:
        known = entries.get(str(budget))
        entries[str(budget)] = Retention(
            budget=str(budget),
            mass=known.mass if known else generalist_mass(outcomes, budget),
            accuracy=retained_accuracy(outcomes, "generalist", budget),
        )
    document = found.document.model_copy(update={"generalist_retention": tuple(entries.values()), "decided": decided})
    return library.put_set(store, found.under(document), live=live)


def _document(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    return {
        "results": [
            {
                "task": outcome.run.task,
                "variant": outcome.run.variant,
                "budget": None if outcome.run.budget is None else str(outcome.run.budget),
                "pattern": None if outcome.run.pattern is None else outcome.run.pattern.task,
                "metric": None if outcome.run.pattern is None else outcome.run.pattern.metric,
                "allocation": None if outcome.run.pattern is None else outcome.run.pattern.allocation,
                "examples": outcome.examples,
                "correct": outcome.correct,
                "accuracy": outcome.accuracy,
                "perplexity": outcome.perplexity,
                "kl": outcome.kl,
                "retained_mass": outcome.mass,
            }
            for outcome in outcomes
        ]
    }


def _print(outcomes: Sequence[Outcome]) -> None:
    tasks = list(dict.fromkeys(outcome.run.task for outcome in outcomes))
    columns: tuple[tuple[str, Callable[[Outcome], str]], ...] = (
        ("Exact match, %", lambda outcome: f"{100 * outcome.accuracy:.1f}"),
        ("Perplexity of the given answers", lambda outcome: f"{outcome.perplexity:.2f}"),
        ("KL to the full model, nats a token", lambda outcome: f"{outcome.kl:.3f}"),
        ("Router mass kept", lambda outcome: f"{outcome.mass:.3f}"),
    )
    rows: dict[tuple[str, ...], dict[str, Outcome]] = {}
    for outcome in sorted(outcomes, key=_size):
        rows.setdefault(_row(outcome), {})[outcome.run.task] = outcome
    for title, text in columns:
        print_table(
            title,
            ("budget", "pattern", "ranked by", "split", *tasks),
            [(*row, *(text(cells[task]) if task in cells else "" for task in tasks)) for row, cells in rows.items()],
        )


def _size(outcome: Outcome) -> int:
    """Largest budget first, after the full model."""
    return -outcome.run.budget.kept if outcome.run.budget else -(1 << 31)


def _row(outcome: Outcome) -> tuple[str, ...]:
    run = outcome.run
    if run.pattern is None:
        return "all", run.variant, "", ""
    return str(run.budget), run.variant, run.pattern.metric, run.pattern.allocation
