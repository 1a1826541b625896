"""`premoe demo`: the whole path on the small fixture model."""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import get_args

import click

from premoe_local.console import interrupt_on_sigterm, note, print_table, progress
from premoe_local.output_file import check_folder, write_file
from premoe_runtime.formats.choices import EngineName
from premoe_runtime.formats.errors import NotFound

BUDGET = "4/16"
_FIXTURE = Path("tests/fixtures/tiny-moe")


@click.command(short_help="Pack, profile, serve and measure the small fixture model.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the report to this file as JSON, too.",
)
@click.option("--fixture", type=click.Path(path_type=Path), help="Checkpoint folder [default: the repository's].")
@click.option("--requests", "per_task", type=click.IntRange(1), default=8, show_default=True, help="Prompts a task.")
@click.option("--budget", default=BUDGET, show_default=True, help="Experts activated out of experts kept per layer.")
@click.option(
    "--engine",
    type=click.Choice(get_args(EngineName)),
    default="hf",
    show_default=True,
    help="As `premoe up --engine`.",
)
def command(json_file: Path | None, fixture: Path | None, per_task: int, budget: str, engine: EngineName) -> None:
    """Show the whole path on a small trained model, in about a minute.

    Packs the fixture, profiles its eight stored tasks, starts the mesh, sends prompts of every stored task and of
    unknown ones through the OpenAI API, and prints what each request cost and what all of them got right. Leaves
    nothing behind.
    """
    interrupt_on_sigterm()
    folder = _fixture(fixture)
    if json_file is not None:
        check_folder(json_file)
    # Imported here: torch takes seconds, and a wrong folder should be told at once.
    from premoe_local.demo import report
    from premoe_local.demo.run import run_demo

    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="premoe-demo-")))
        bar = stack.enter_context(progress("starting", total=1.0, counts=False))
        result = run_demo(
            folder,
            work,
            per_task=per_task,
            budget=budget,
            engine=engine,
            step=lambda text, share: bar.update(description=text, completed=share),
            log=lambda name, line: note(f"{name}: {line}"),
        )
    print_table("Requests", report.REQUEST_COLUMNS, report.request_rows(result.served))
    rows = report.summary_rows(result.served, result.memory, result.accuracy)
    print_table(f"In all, at budget {budget}", report.SUMMARY_COLUMNS, rows)
    click.echo(
        "Served answers are checked against the exact ones; full, generalist and random answer the same prompts by\n"
        "teacher forcing in the demo's own process, in 32-bit arithmetic (the worker runs the checkpoint's bfloat16)."
    )
    if json_file is not None:
        document = report.document(result.served, result.memory, result.accuracy)
        write_file(json_file, json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n")


def _fixture(given: Path | None) -> Path:
    """The checkpoint folder: as given, else the repository's, from its root or from the source tree."""
    candidates = [given] if given else [_FIXTURE, Path(__file__).resolve().parents[4] / _FIXTURE]
    for candidate in candidates:
        if (candidate / "config.json").is_file():
            return candidate
    if given is not None:
        raise NotFound(
            f"{given} has no config.json; name a checkpoint's folder with --fixture", reason="FIXTURE_NOT_FOUND"
        )
    raise NotFound(
        f"the demo's model is not installed with premoe; run it in a checkout of the repository, or name its {_FIXTURE}"
        " with --fixture",
        reason="FIXTURE_NOT_FOUND",
    )
