"""`premoe eval ablate`: what tasks lose without another task's own experts. Part of `premoe eval`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from premoe_local.console import json_option, note, print_json, print_table, progress
from premoe_local.full_model import memory_options, model_to_measure
from premoe_local.task_files import task_files
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.domains import Domains
from premoe_runtime.offline.calibration import PassedOver, read_calibration
from premoe_runtime.offline.patterns import library
from premoe_runtime.packs.reader import PackReader, open_pack

if TYPE_CHECKING:
    from premoe_runtime.offline.evaluation.ablation import Ablation, Base, Loss, Mean
    from premoe_runtime.offline.evaluation.statistics import Estimate

_FULL = "full"
_CONTROL, _NOBODY = "as many at random", "(nobody)"


@click.command("ablate")
@click.argument("model")
@click.option("--data", "data", multiple=True, required=True, help="task=FILE.jsonl with answers, repeatable.")
@click.option(
    "--budgets", default=_FULL, show_default=True, help="Comma-separated: full, or a/b on each task's specialist."
)
@click.option("--set", "set_name", help="Pattern set, by id or the start of it.  [default: the live one]")
@click.option("--store", "store_url", help="Object store of the patterns.  [default: the one MODEL lies in]")
@click.option(
    "--controls", type=click.IntRange(0, 100), default=3, show_default=True, help="Random draws beside every mask."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the random draws.")
@click.option("--limit", type=click.IntRange(min=1), help="Take at most this many examples of each task.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.")
@click.option("--device", default="cpu", show_default=True, help="Torch device, for example cuda.")
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto", help="Arithmetic.")
@memory_options
@json_option
def ablate(
    model: str,
    data: tuple[str, ...],
    budgets: str,
    set_name: str | None,
    store_url: str | None,
    controls: int,
    seed: int,
    limit: int | None,
    threads: int | None,
    device: str,
    dtype: str,
    memory: int | None,
    spool: Path | None,
    as_json: bool,
) -> None:
    """Measure what each task loses when another one is denied, and how much of the denied task is left.

    MODEL is a pack or an object store with one. Every task of the set is denied in its turn, as `deny` in a request
    does it: its own experts are masked out. Each mask stands beside random ones of as many experts in every layer.
    Intervals (95 %) are over prompts and draws. Tasks that the model never answers exactly have perplexity and KL only.
    """
    wanted = [None if text.strip() == _FULL else Budget.parse(text) for text in dict.fromkeys(budgets.split(","))]
    unused = PassedOver()
    examples = {
        task: read_calibration(path, limit=limit, passed_over=unused)
        for task, path in task_files(data, "--data").items()
    }
    reader = open_pack(model)
    planned, set_id = _planned(reader, model, store_url, set_name, list(examples), wanted, controls=controls, seed=seed)
    # Imported here: torch takes seconds, and faults in files and options should be told at once.
    from premoe_runtime.offline.evaluation.ablation import bases, losses, means
    from premoe_runtime.offline.evaluation.exam import Examiner

    slot_model = model_to_measure(
        reader, memory=memory, threads=threads, device=device, dtype=dtype, purpose="evaluated"
    )
    examiner = Examiner(slot_model, examples, spool=spool, passed_over=unused)
    cells = planned.cells()
    with progress("evaluating", total=sum(len(examples[cell.task]) for cell in cells)) as bar:
        asked = [one for one in map(planned.asked, cells) if one is not None]
        found = examiner.answers(
            asked, advance=bar.advance, stage=lambda what: bar.update(description=f"evaluating {what}")
        )
        answers = dict(zip(cells, found, strict=True))
    if unused.note:
        note(unused.note)
    base, lost, mean = bases(planned, answers), losses(planned, answers), means(planned, answers)
    if as_json:
        print_json({"set_id": set_id, **_document(planned, base, mean, lost)})
        return
    _print_means(mean)
    for budget in planned.budgets:
        of_budget = {one.task: one for one in base if one.budget == budget}
        _print(of_budget, [one for one in lost if one.budget == budget], budget, planned)


def _planned(
    reader: PackReader,
    model: str,
    store_url: str | None,
    set_name: str | None,
    tasks: Sequence[str],
    budgets: Sequence[Budget | None],
    *,
    controls: int,
    seed: int,
) -> tuple[Ablation, str]:
    from premoe_runtime.offline.evaluation.ablation import Ablation

    manifest = reader.manifest()
    for budget in budgets:
        if budget is not None:
            budget.check(top_k=manifest.top_k, num_experts=manifest.num_experts)
    store = library.store_of(model, store_url)
    found = library.load_set(store, manifest.weights_id, set_name)
    specialists = {each.task: library.find_pattern(store, each.pattern_id) for each in found.specialists}
    scores = {task: pattern.scores for task, pattern in specialists.items()}
    domains = Domains.of(scores, manifest.router, manifest.top_k, shared=found.allocation == "shared")
    planned = Ablation.of(
        tasks,
        specialists,
        domains,
        exists=manifest.exists,
        top_k=manifest.top_k,
        budgets=budgets,
        controls=controls,
        seed=seed,
    )
    return planned, found.set_id


def _document(planned: Ablation, base: Sequence[Base], mean: Sequence[Mean], lost: Sequence[Loss]) -> dict[str, Any]:
    return {
        "denied": {task: mask.sum(axis=1).tolist() for task, mask in planned.own.items()},
        "controls": planned.controls,
        "nobody": [one.document() for one in base],
        "means": [one.document() for one in mean],
        "losses": [one.document() for one in lost],
    }


def _print_means(mean: Sequence[Mean]) -> None:
    def text(found: Estimate | None, digits: int) -> str:
        return "" if found is None else f"{found.value:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"

    rows = [
        (
            _FULL if one.budget is None else str(one.budget),
            _CONTROL if one.control else "a task's own",
            *(text(found, 1) for found in (one.own, one.others)),
            *(text(found, 3) for found in (one.own_kl, one.others_kl)),
        )
        for one in mean
    ]
    columns = ("budget", "experts denied", "the denied task", "each other task", "KL, the denied", "KL, each other")
    print_table("Exact match lost on the mean, points", columns, rows)


def _print(base: Mapping[str, Base], lost: Sequence[Loss], budget: Budget | None, planned: Ablation) -> None:
    where = "the full model" if budget is None else f"specialists at {budget}"
    whole = {task: f"{one.accuracy:.1f} %" if one.accuracy else "" for task, one in base.items()}
    tables: tuple[tuple[str, Callable[[Loss], str], Mapping[str, str]], ...] = (
        (f"Exact match lost on {where}, points", _points, whole),
        ("KL to the full model, nats a token", lambda one: f"{one.kl.value:.3f}", {}),
        (
            "Perplexity of the given answers",
            lambda one: f"{one.perplexity:.2f}",
            {task: f"{one.perplexity:.2f}" for task, one in base.items()},
        ),
    )
    for title, text, before in tables:
        first = [(_NOBODY, "", *(before[task] for task in planned.tasks))] if before else []
        print_table(title, ("denied", "experts", *planned.tasks), [*first, *_rows(lost, planned, text)])


def _points(one: Loss) -> str:
    return "" if one.lost is None else f"{one.lost.value:.1f} [{one.lost.low:.1f}, {one.lost.high:.1f}]"


def _rows(lost: Sequence[Loss], planned: Ablation, text: Callable[[Loss], str]) -> Iterator[tuple[str, ...]]:
    found = {(one.denied, one.control, one.task): text(one) for one in lost}
    for denied, mask in planned.own.items():
        for control in (False, True) if planned.controls else (False,):
            name = _CONTROL if control else denied
            cells = [found.get((denied, control, task), "") for task in planned.tasks]
            yield (name, "/".join(map(str, mask.sum(axis=1))) if not control else "", *cells)
