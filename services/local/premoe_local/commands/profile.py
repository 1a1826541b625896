"""`premoe profile`: one pass over a task's calibration text, one mergeable profile; list and remove profiles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import click

from premoe_local.console import date, json_option, note, print_json, print_table
from premoe_local.default_group import DefaultGroup
from premoe_local.full_model import memory_options
from premoe_local.profiling import Done, How, Job, profiles
from premoe_local.score_option import score_names
from premoe_local.task_files import task_files
from premoe_runtime.offline.calibration import Answers, PassedOver, check_task, read_calibration
from premoe_runtime.offline.profile.scores import ROUTER_ONLY, USUAL

if TYPE_CHECKING:
    from premoe_runtime.storage import Store


@click.group("profile", cls=DefaultGroup, default="measure", no_args_is_help=True)
def command() -> None:
    """Measure which experts tasks' prompts use, and what their answers would lose without them.

    MODEL is a pack (…/models/<id>) or an object store with one pack. Several tasks in one call share one load of the
    model; a task that was profiled so before is not measured again, and a stopped run goes on where it ended. A model
    that does not fit into memory is read layer by layer, twice for each task, and gives the same profile. A
    profile holds sums that merge exactly: a file profiled in two parts (--limit, --skip) gives the same patterns as in
    one. `premoe patterns build` turns profiles into patterns: give each task 20 prompts at least, better 150.
    """


@command.command("measure")
@click.argument("model")
@click.option(
    "--task", "tasks", multiple=True, required=True, metavar="NAME=FILE", help="Task and its data, repeatable."
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help='File of a single --task NAME. JSONL, one object a line: {"prompt": …, "answer": …} or {"messages": […]}.',
)
@click.option(
    "--answers",
    type=click.Choice(get_args(Answers)),
    default="given",
    show_default=True,
    help="Run prompts with the answers in the file, with the model's own, or alone (open text: every token counts).",
)
@click.option(
    "--score",
    "scores",
    multiple=True,
    callback=score_names,
    help=f"Measure what this score needs (`premoe scores`), repeatable.  [default: {', '.join(USUAL)}]",
)
@click.option(
    "--router-only",
    is_flag=True,
    help=f"Measure {', '.join(ROUTER_ONLY)}: no backward pass, quicker, but no ranking by impact.",
)
@click.option("--to", help="Object store to write to.  [default: the one MODEL lies in]")
@click.option("--limit", type=click.IntRange(min=1), help="Take at most this many examples of each task.")
@click.option("--skip", type=click.IntRange(min=0), default=0, help="Leave out this many examples first.")
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
@json_option
def measure(
    model: str,
    tasks: tuple[str, ...],
    data: Path | None,
    answers: str,
    scores: tuple[str, ...],
    router_only: bool,
    to: str | None,
    limit: int | None,
    skip: int,
    threads: int | None,
    device: str,
    dtype: str,
    memory: int | None,
    spool: Path | None,
    as_json: bool,
) -> None:
    """Measure profiles; `premoe profile --help` says how."""
    if scores and router_only:
        raise click.UsageError("--router-only is a choice of scores: give it or --score")
    asked = scores or (ROUTER_ONLY if router_only else USUAL)
    how = How(cast("Answers", answers), asked, threads, device, dtype, memory, spool)
    unused = PassedOver()
    jobs = [
        Job(task, file, read_calibration(file, answers=how.answers, limit=limit, skip=skip, passed_over=unused))
        for task, file in _files(tasks, data).items()
    ]
    done, store = profiles(model, to, jobs, how, unused)
    for text in _notes(done, unused):
        note(f"note: {text}")
    if as_json:
        documents = [_document(store, each) for each in done]
        print_json(documents[0] if data is not None else {"profiles": documents})
        return
    columns = ("task", "prompts", "tokens", "tokens/s", "profile")
    print_table(f"Profiles in {store.url}", columns, [_row(each) for each in done])


def _files(tasks: Sequence[str], data: Path | None) -> dict[str, Path]:
    """Every task's file: ``NAME=FILE`` each, or one name and ``--data``."""
    if data is not None:
        if len(tasks) > 1 or "=" in tasks[0]:
            raise click.UsageError("--data goes with one --task NAME; give several as --task NAME=FILE")
        check_task(tasks[0])
        return {tasks[0]: data}
    return task_files(tasks)


def _notes(done: Sequence[Done], unused: PassedOver) -> list[str]:
    from premoe_runtime.offline.patterns.build import MIN_PROMPTS, prompts_wanted

    few = [
        f"task {each.profile.task} has {each.profile.samples} prompts; `premoe patterns build` needs at least "
        f"{MIN_PROMPTS}, and {prompts_wanted()} for a good cutoff"
        for each in done
        if each.profile.samples < MIN_PROMPTS
    ]
    known = [f"task {each.profile.task} was profiled with this data before" for each in done if each.seconds is None]
    return [unused.note] * bool(unused.note) + few + known


def _document(store: Store, done: Done) -> dict[str, object]:
    from premoe_runtime.offline.profile.record import profile_path

    return {
        "profile_id": done.profile_id,
        "url": store.at(profile_path(done.profile_id)),
        "task": done.profile.task,
        "weights_id": done.profile.weights_id,
        "samples": done.profile.samples,
        "tokens": done.profile.tokens,
        "seconds": done.seconds,
    }


def _row(done: Done) -> tuple[object, ...]:
    rate = "-" if done.seconds is None else f"{done.profile.tokens / done.seconds:.0f}"
    return done.profile.task, done.profile.samples, done.profile.tokens, rate, done.profile_id


@command.command("list")
@click.argument("store_url")
@json_option
def list_(store_url: str, as_json: bool) -> None:
    """List the profiles of the object store STORE_URL."""
    from premoe_runtime.offline.patterns.library import dates, store_of
    from premoe_runtime.offline.patterns.upkeep import readable_profiles

    store = store_of(store_url)
    made = dates(store, "profiles")
    entries: list[dict[str, Any]] = [
        {
            "profile_id": profile_id,
            "task": None if profile is None else profile.task,
            "samples": None if profile is None else profile.samples,
            "tokens": None if profile is None else profile.tokens,
            "weights_id": None if profile is None else profile.weights_id,
            "made": date(made.get(profile_id, 0.0)),
        }
        for profile_id, profile in readable_profiles(store)
    ]
    if as_json:
        print_json({"profiles": entries})
        return
    rows = [
        (each["task"] or "(damaged)", each["samples"], each["tokens"], each["made"], each["profile_id"][:16])
        for each in entries
    ]
    print_table(f"Profiles in {store.url}", ("task", "prompts", "tokens", "made", "profile"), rows)


@command.command("rm")
@click.argument("store_url")
@click.argument("names", nargs=-1, required=True)
@json_option
def remove(store_url: str, names: tuple[str, ...], as_json: bool) -> None:
    """Remove profiles from the object store STORE_URL.

    NAMES are tasks, whose profiles are all removed, and starts of profile ids. Patterns made from them stay.
    """
    from premoe_runtime.offline.patterns.library import store_of
    from premoe_runtime.offline.patterns.upkeep import find_profiles, remove_profiles

    store = store_of(store_url)
    wanted = list(dict.fromkeys(profile_id for name in names for profile_id in find_profiles(store, name)))
    remove_profiles(store, wanted)
    if as_json:
        print_json({"removed": wanted})
        return
    for profile_id in wanted:
        click.echo(f"removed profile {profile_id}")
