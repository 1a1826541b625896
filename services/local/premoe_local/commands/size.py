"""`premoe size`: which budgets, slots and contexts fit into a memory size, or why not."""

from __future__ import annotations

from dataclasses import asdict
from typing import get_args

import click

from premoe_local.console import CommandError, human_bytes, json_option, note, parse_bytes, print_json, print_table
from premoe_runtime.formats.allocation import Splits, slots_text
from premoe_runtime.formats.budget import DEFAULT_SPARE_SLOTS, Budget
from premoe_runtime.formats.choices import Allocation
from premoe_runtime.formats.errors import NotFound
from premoe_runtime.offline.patterns import library
from premoe_runtime.offline.sizing import DEFAULT_ROWS, SizeReport, SizeRequest, shape_of, size
from premoe_runtime.packs.reader import open_pack


@click.command("size")
@click.argument("model")
@click.option("--memory", required=True, help="Accelerator memory, for example 24GiB.")
@click.option("--budget", "budgets", multiple=True, help="a/b, repeatable.  [default: all, 3/4, 1/2, 1/4, 1/8]")
@click.option("--context", type=int, help="Tokens per sequence.  [default: the model's, at most 4096]")
@click.option("--batch", type=int, default=DEFAULT_ROWS, show_default=True, help="Sequences at once.")
@click.option("--spare", type=int, default=DEFAULT_SPARE_SLOTS, show_default=True, help="Spare slots a layer.")
@click.option(
    "--allocation",
    type=click.Choice(get_args(Allocation)),
    default="shared",
    show_default=True,
    help="Slots of the layers as the live pattern set shares them, if there is one, or equally many; equal bytes.",
)
@json_option
def command(
    model: str,
    memory: str,
    budgets: tuple[str, ...],
    context: int | None,
    batch: int,
    spare: int,
    allocation: Allocation,
    as_json: bool,
) -> None:
    """Say which budgets, slots and contexts fit into a memory size.

    MODEL is a pack (…/models/<id>) or an object store with one pack. Counts the skeleton, slots × layers × blob,
    keys and values of all sequences, and the workspace of one step; nothing is loaded. What the process takes in
    main memory comes beside it, also where the device is a CPU. Exit code 7 when none of the budgets fits.
    """
    reader = open_pack(model)
    manifest = reader.manifest()
    request = SizeRequest(
        memory=parse_bytes(memory),
        budgets=tuple(Budget.parse(text) for text in budgets),
        context=context,
        rows=batch,
        spare=spare,
        splits=_splits(model, manifest.weights_id) if allocation == "shared" else None,
    )
    report = size(shape_of(manifest, reader.read_file("skeleton/config.json")), request)
    if as_json:
        print_json(_document(report))
    else:
        _print(report)
    if report.largest is None:
        raise CommandError(f"no budget fits into {human_bytes(report.memory)}: {report.fits[-1].reason}", 7)


def _print(report: SizeReport) -> None:
    rows = [
        (
            fit.budget,
            slots_text(fit.layer_slots),
            human_bytes(fit.experts),
            human_bytes(fit.total),
            human_bytes(fit.host),
            "yes" if fit.fits else "no",
            fit.max_context if fit.max_context else "-",
            fit.reason,
        )
        for fit in report.fits
    ]
    columns = ("budget", "slots a layer", "experts", "in all", "main memory", "fits", "longest context", "why not")
    title = f"{human_bytes(report.memory)} for {report.rows} sequences of {report.context} tokens"
    print_table(title, columns, rows)
    note(
        f"skeleton {human_bytes(report.skeleton)}, keys and values {human_bytes(report.kv)}, "
        f"workspace {human_bytes(report.workspace)}; at most {report.max_slots} slots a layer fit; "
        f"all experts take {human_bytes(report.all_experts)}"
    )


def _splits(model: str, weights_id: str) -> Splits | None:
    """Those of the live pattern set, if there is one."""
    try:
        return library.load_set(library.store_of(model), weights_id).splits
    except NotFound:
        return None


def _document(report: SizeReport) -> dict[str, object]:
    largest = report.largest
    fits = [{**asdict(fit), "budget": str(fit.budget)} for fit in report.fits]
    return {**asdict(report), "fits": fits, "largest": None if largest is None else str(largest.budget)}
