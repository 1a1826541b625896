"""The command of one method: what all take, and the settings of its own."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

import blake3
import click

from premoe_local.byte_bar import Bar
from premoe_local.compress.report import ConsoleReport, records
from premoe_local.console import human_bytes, json_option, note, print_json, print_table
from premoe_local.task_files import task_files
from premoe_runtime.offline.calibration import Example, PassedOver, read_calibration
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.storage import open_store

if TYPE_CHECKING:
    from premoe_runtime.compress.method import Job, Method
    from premoe_runtime.packs.writer import PackResult


def method_command(method: Method) -> click.Command:
    """``premoe compress NAME PACK --to URL …``."""

    def run(pack: str, to: str, **options: Any) -> None:
        _run(method, pack, to, options)

    command: Callable[..., Any] = run
    for option in reversed((*_own(method), *_common(method))):
        command = option(command)
    command = click.argument("pack")(command)
    return click.command(method.name, help=_help(method), short_help=method.title)(command)


def read_data(named: tuple[str, ...], limit: int | None, *, answers: bool) -> dict[str, list[Example]]:
    """Examples of every TASK=FILE. Raises what ``task_files`` and ``read_calibration`` raise."""
    unused = PassedOver()
    found = {
        task: read_calibration(path, answers="given" if answers else "none", limit=limit, passed_over=unused)
        for task, path in task_files(named, "--data").items()
    }
    if unused.note:
        note(f"note: {unused.note}")
    return found


def _help(method: Method) -> str:
    needs = ", ".join(method.needs) or "nothing but the pack"
    return (
        f"{method.title[0].upper()}{method.title[1:]} ({method.source}).\n\n"
        f"PACK is a pack (…/models/<id>) or an object store with one pack. Changes: {', '.join(method.changes)}. "
        f"Needs: {needs}. Cost: {method.cost}. The result loads in: {method.loads}. A stopped run goes on when it is "
        "started again."
    )


def _common(method: Method) -> list[Callable[..., Any]]:
    budget = click.option("--budget", default="50%", show_default=True, help="Share of the experts' bytes that stays.")
    wants = bool({"prompts", "answers"} & set(method.needs))
    return [
        click.option("--to", required=True, metavar="URL", help="Object store root for the new pack: a folder, s3://."),
        click.option(
            "--data",
            multiple=True,
            required=wants,
            metavar="TASK=FILE",
            help="Examples of what the model is for, JSONL, repeatable." + ("" if wants else " Not needed."),
        ),
        *([budget] if {"count", "width"} & set(method.changes) else []),
        click.option("--limit", type=click.IntRange(min=1), help="Take at most this many examples of each task."),
        click.option("--seed", type=int, default=0, show_default=True, help="Of whatever is drawn."),
        click.option("--threads", type=click.IntRange(min=1), help="CPU threads."),
        click.option("--device", default="cpu", show_default=True, help="Torch device, for example cuda."),
        click.option(
            "--work",
            type=click.Path(path_type=Path),
            help="Folder for what a stopped run leaves to the next.  "
            "[default: premoe/spool in the user's cache folder]",
        ),
        json_option,
    ]


def _own(method: Method) -> list[Callable[..., Any]]:
    hints = get_type_hints(method.settings)
    return [_option(one, hints[one.name]) for one in dataclasses.fields(method.settings)]


def _option(one: dataclasses.Field[Any], kind: Any) -> Callable[..., Any]:
    name, text = "--" + one.name.replace("_", "-"), one.metadata["help"]
    if kind is bool:
        return click.option(name, one.name, is_flag=True, default=one.default, help=text)
    if get_origin(kind) is tuple:
        return click.option(name, one.name, multiple=True, type=get_args(kind)[0], default=one.default, help=text)
    if get_origin(kind) is Literal:
        kind = click.Choice(get_args(kind))
    return click.option(name, one.name, type=kind, default=one.default, show_default=True, help=text)


def _run(method: Method, pack: str, to: str, options: Mapping[str, Any]) -> None:
    from premoe_runtime.compress.method import Job
    from premoe_runtime.compress.run import facts_of, plan
    from premoe_runtime.compress.share import Share
    from premoe_runtime.compress.weights import PackWeights
    from premoe_runtime.offline.profile.spool import default_spool

    own = {one.name: options[one.name] for one in dataclasses.fields(method.settings)}
    data = read_data(options["data"], options["limit"], answers="answers" in method.needs)
    store, share = open_store(to), Share.parse(options.get("budget", "100%"))
    old, report = PackWeights(open_pack(pack)), ConsoleReport()
    job = Job(
        old=old,
        data=data,
        share=share,
        settings=method.settings(**own),
        work=Path(),
        seed=options["seed"],
        device=options["device"],
        threads=options["threads"],
        report=report,
    )
    key = blake3.blake3(repr((old.manifest.model_id, facts_of(method, job))).encode()).hexdigest()[:16]
    job = dataclasses.replace(job, work=(options["work"] or default_spool()) / f"compress-{method.name}-{key}")
    try:
        new = plan(method, job)
    finally:
        report.close()
    result = _written(method, job, new, store)
    shutil.rmtree(job.work, ignore_errors=True)
    _say(method, old, result, new.facts, options["as_json"])


def _written(method: Method, job: Job, new: Any, store: Any) -> PackResult:
    from premoe_runtime.compress.result import write
    from premoe_runtime.compress.run import facts_of

    bar = Bar()
    with bar.rich:
        return write(job.old, new, facts_of(method, job), store, bar)


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else value


def _say(method: Method, old: Any, result: PackResult, facts: Mapping[str, object], as_json: bool) -> None:
    before, after, found = old.manifest, result.manifest, records(facts)
    if as_json:
        print_json(
            {
                "url": result.url,
                "method": method.name,
                "model_id": after.model_id,
                "weights_id": after.weights_id,
                "from_model_id": before.model_id,
                "experts": list(after.layer_experts),
                "width": next(field.shape[1] for field in after.layout.fields if field.name == "down"),
                "experts_bytes_before": before.experts_bytes,
                "experts_bytes": after.experts_bytes,
                "already_written": result.already_packed,
                "resumed_layers": result.resumed_layers,
                **found,
            }
        )
        return
    for name, rows in found.items():
        print_table(name, tuple(rows[0]), [tuple(map(_cell, row.values())) for row in rows])
    if result.already_packed:
        click.echo(f"written before: {result.url}")
        return
    click.echo(
        f"{method.name}: {human_bytes(before.experts_bytes)} of experts became {human_bytes(after.experts_bytes)} "
        f"({100 * after.experts_bytes / before.experts_bytes:.1f} %): {result.url}"
    )
