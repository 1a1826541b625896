"""`premoe eval sweep`: scores, splits and static sets over several calibration seeds. Part of `premoe eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import click

from premoe_local.console import interrupt_on_sigterm, json_option, note, print_json, print_table
from premoe_local.evaluation.recipe import SEEDS, Recipe
from premoe_local.full_model import memory_options
from premoe_local.output_file import check_folder, write_file
from premoe_local.task_files import task_files
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.offline.calibration import PassedOver
from premoe_runtime.offline.evaluation.data import DOCUMENTS, PROMPTS
from premoe_runtime.offline.evaluation.plan import SCORES
from premoe_runtime.offline.profile.scores import refuse_family

_STATE = "state"


@click.command("sweep")
@click.argument("model", nargs=-1)
@click.option("--recipe", "recipe_file", type=click.Path(path_type=Path), help="TOML file that says what is asked.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for the report.")
@click.option("--data", multiple=True, help="task=FILE.jsonl with answers, repeatable.  [default: the demo's tasks]")
@click.option("--calibration", multiple=True, help="task=FILE.jsonl to calibrate with.  [default: a part of --data]")
@click.option("--budget", "budgets", multiple=True, help="a/b, repeatable.  [default: 1/2, 1/4 and 1/8 of the experts]")
@click.option("--score", "scores", multiple=True, help=f"Repeatable (`premoe scores`).  [default: {', '.join(SCORES)}]")
@click.option("--seeds", type=int, help=f"Calibration texts of a task.  [default: {SEEDS}]")
@click.option("--documents", type=int, help=f"Prompts of a calibration text.  [default: {DOCUMENTS}]")
@click.option("--prompts", type=int, help=f"Test prompts of a task.  [default: {PROMPTS}]")
@click.option("--quick", is_flag=True, help="A look: few prompts, two seeds, one budget, no matrices.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.")
@click.option("--device", help="Torch device.  [default: cpu]")
@click.option("--dtype", type=click.Choice(get_args(Recipe.model_fields["dtype"].annotation)), help="Arithmetic.")
@memory_options
@json_option
def sweep(
    model: tuple[str, ...],
    recipe_file: Path | None,
    out: Path,
    data: tuple[str, ...],
    calibration: tuple[str, ...],
    quick: bool,
    threads: int | None,
    memory: int | None,
    spool: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Compare ways to choose experts, by accuracy, perplexity and KL to the full model.

    MODEL is a checkpoint (a folder, hf://org/name), a pack, or a store with one. Several models are training seeds of
    one thing: figures are their means, and intervals cover the spread between them. For every calibration seed each
    task is profiled once; its test prompts are then answered by the experts of every score, budget and split, by
    static sets of equal bytes, by those that recognition gives, and by other tasks' experts. A run that was stopped
    goes on where it ended when the same command is given. A model that does not fit into memory is read layer by
    layer, twice for each profile and once for all answers, and gives the same figures. OUT gets evaluation.md,
    evaluation.json and pictures.
    """
    interrupt_on_sigterm()
    given = {name: value for name, value in options.items() if value not in (None, ())}
    files = task_files(data, "--data") if data else {}
    texts = task_files(calibration, "--calibration") if calibration else {}
    if texts.keys() - files.keys():
        raise InvalidInput(
            f"--calibration names {min(texts.keys() - files.keys())!r}, which --data does not", reason="TASK_UNKNOWN"
        )
    if files:
        given["tasks"] = {t: {"data": str(f), "calibration": str(texts.get(t, ""))} for t, f in files.items()}
    recipe = Recipe.read(recipe_file, given | ({"model": model} if model else {}))
    recipe = recipe.quick() if quick else recipe
    check_folder(out)
    document, pictures = measured(recipe, out, threads, quick, memory=memory, spool=spool)
    _write(document, pictures, " and ".join(recipe.model), out)
    if as_json:
        print_json(document)
        return
    _print(document)
    note(f"{out / 'evaluation.md'}, evaluation.json, {', '.join(pictures) or 'no pictures'}")


def measured(
    recipe: Recipe, out: Path, threads: int | None, quick: bool, *, memory: int | None = None, spool: Path | None = None
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Figures and pictures; ``out``/state holds what a stopped run had measured."""
    unused = PassedOver()
    data = recipe.data(unused)
    # Imported here: torch takes seconds, and faults in files and options should be told at once.
    from premoe_local.evaluation.model import describe_all, opened_all
    from premoe_local.evaluation.picture import pictures
    from premoe_local.evaluation.runs import measure
    from premoe_runtime.offline.evaluation.figures import figures

    state = out / _STATE
    described = describe_all(recipe.model)
    scope = recipe.scope(described.top_k, described.experts, probe=described.probe, quick=quick)
    refuse_family(scope.ranked, described.family)
    readers = opened_all(recipe.model, state)
    runs = measure(recipe, readers, data, scope, state, threads=threads, memory=memory, spool=spool, say=unused)
    if unused.note:
        note(unused.note)
    document = {**figures(runs), "recipe": recipe.model_dump(mode="json")}
    return document, pictures(document)


def _write(document: dict[str, Any], pictures: dict[str, bytes], name: str, out: Path) -> None:
    from premoe_local.evaluation.markdown import report

    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    write_file(out / "evaluation.json", text.encode() + b"\n")
    for picture, image in pictures.items():
        write_file(out / picture, image)
    write_file(out / "evaluation.md", report(document, name, list(pictures)).encode())


def _print(document: dict[str, Any]) -> None:
    from premoe_local.evaluation.markdown import FULL, estimate, full_rows

    for one in document["contest"]:
        rows = [
            (each["name"], estimate(each["retained"]) if each["retained"] else "", estimate(each["kl"], 3))
            for each in one["entrants"]
        ]
        title = f"{one['percent']:g} % of the experts ({one['budget']}), equal bytes"
        print_table(title, ("experts", "retained accuracy, %", "KL to the full model, nats a token"), rows)
    print_table("Full model", FULL, full_rows(document))
