"""`premoe patterns`: build patterns and sets from profiles, show and plot them; its other commands lie beside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import click

from premoe_local.console import json_option, note, print_json, print_table
from premoe_local.decided import print_decided
from premoe_local.output_file import write_file
from premoe_local.pattern_index import reindex
from premoe_local.pattern_life import history, roll_back, set_live
from premoe_local.pattern_rubbish import collect
from premoe_local.pattern_shadow import shadow
from premoe_local.pattern_store import list_, pattern_document, remove
from premoe_local.score_option import score_name
from premoe_runtime.formats.budget import DEFAULT_SPARE_SLOTS as SPARE
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.choices import Allocation, OnUnknown
from premoe_runtime.formats.pattern import Metric, Pattern
from premoe_runtime.formats.pattern_set import PatternSet
from premoe_runtime.offline.patterns import library, upkeep
from premoe_runtime.offline.patterns.bounds import Bounds
from premoe_runtime.offline.patterns.build import (
    DEFAULT_QUANTILE,
    MARGIN,
    MAX_EXEMPLARS,
    BuildOptions,
    BuiltSet,
    build_set,
    usable,
)
from premoe_runtime.offline.patterns.derive import mean_retained_mass
from premoe_runtime.offline.profile.record import Profile
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.packs.weights import packed_top_k
from premoe_runtime.storage import Store, open_store

set_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--set", "set_name", help="Pattern set, by id or the start of it.  [default: the live one]"
)


@click.group("patterns")
def command() -> None:
    """Build, list, show and plot pattern sets; try one, make it live, roll back, remove others."""


for subcommand in (list_, set_live, roll_back, history, remove, collect, reindex, shadow):
    command.add_command(subcommand)


@command.command("build")
@click.argument("store_url")
@click.argument("model", required=False)
@click.option("--profiles", "names", multiple=True, help="Profile id or task, repeatable.  [default: all]")
@click.option(
    "--metric",
    callback=score_name,
    help="Score that ranks (`premoe scores`).  [default: impact; peu where a profile has no gradients]",
)
@click.option(
    "--allocation",
    type=click.Choice(get_args(Allocation)),
    help="Budgets take the best experts of all layers, or equally many a layer.  [default: shared by impact]",
)
@click.option("--pin", "pins", multiple=True, metavar="LAYER:EXPERT,…", help="Experts always kept, repeatable.")
@click.option("--least", type=click.IntRange(min=0), default=0, show_default=True, help="Fewest experts of any layer.")
@click.option("--most", type=click.IntRange(min=1), help="Most experts of any layer.  [default: all]")
@click.option(
    "--quantile",
    type=float,
    default=DEFAULT_QUANTILE,
    show_default=True,
    help="Share of a task's own held-out prompts that its cutoff recognises at least.",
)
@click.option(
    "--margin",
    type=float,
    default=MARGIN,
    show_default=True,
    help="How far cutoffs reach out towards other tasks' prompts: room for new wordings, 0 for none.",
)
@click.option(
    "--exemplars",
    type=int,
    help="Compare with the nearest of so many stored prompts a task.  [default: with each task's mean; of a single "
    f"task with the nearest of {MAX_EXEMPLARS}]",
)
@click.option("--budget", "budgets", multiple=True, help="a/b at which to record the generalist, repeatable.")
@click.option(
    "--on-unknown",
    type=click.Choice(get_args(OnUnknown)),
    default="generalist",
    show_default=True,
    help="What runs when no task is close enough, unless the request says otherwise.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random metric.")
@click.option("--set-live", is_flag=True, help="Make the new set the live one.")
@json_option
def build(
    store_url: str,
    model: str | None,
    names: tuple[str, ...],
    metric: Metric | None,
    allocation: Allocation | None,
    pins: tuple[str, ...],
    least: int,
    most: int | None,
    quantile: float,
    margin: float,
    exemplars: int | None,
    budgets: tuple[str, ...],
    on_unknown: str,
    seed: int,
    set_live: bool,
    as_json: bool,
) -> None:
    """Derive patterns, a pooled generalist and a pattern set from profiles.

    STORE_URL holds the profiles and takes the result; MODEL is the pack they were made with (default: the only one
    in the store). Profiles of the same task are merged.
    """
    options = BuildOptions(
        metric=metric,
        allocation=allocation,
        quantile=quantile,
        margin=margin,
        exemplars=exemplars,
        seed=seed,
        bounds=Bounds.parse(pins, least, most),
        budgets=tuple(Budget.parse(text) for text in budgets),
        on_unknown=cast("OnUnknown", on_unknown),
    )
    store = open_store(store_url)
    manifest = open_pack(model or store_url).manifest()
    chosen = [profile_id for name in names for profile_id in upkeep.find_profiles(store, name)]
    profiles = library.profiles_of(store, manifest.weights_id, chosen)
    enough, left_out = (profiles, []) if names else usable(profiles)
    profiles = enough or profiles
    built = build_set(profiles, options)
    set_id = library.publish(store, built, live=set_live)
    if as_json:
        print_json({**_set_document(built.pattern_set), "live": set_live, "notes": [*left_out, *built.notes]})
        return
    for text in (*left_out, *built.notes):
        note(f"note: {text}")
    _print_set(built.pattern_set, f"Pattern set {set_id}" + (" (live)" if set_live else ""))
    _print_masses(built, profiles)


@command.command("show")
@click.argument("store_url")
@click.argument("name", required=False)
@set_option
@click.option("--budget", help="a/b whose kept experts to show.  [default: a quarter of the experts]")
@json_option
def show(store_url: str, name: str | None, set_name: str | None, budget: str | None, as_json: bool) -> None:
    """Show a pattern, or without NAME a set.

    NAME is a task of the set, or the start of a pattern id.
    """
    store = open_store(store_url)
    if name is None:
        found = library.find_set(store, set_name)
        if as_json:
            print_json(_set_document(found))
        else:
            _print_set(found, f"Pattern set {found.set_id}")
        return
    pattern = library.find_pattern(store, name, set_name)
    chosen = _budget(budget, pattern, store)
    counts = pattern.kept(chosen).sum(axis=1)
    best = [ranking[:count].tolist() for ranking, count in zip(pattern.ranking, counts, strict=True)]
    if as_json:
        print_json({**pattern_document(pattern), "budget": str(chosen), "layers": best})
        return
    print_table(
        f"Pattern {pattern.pattern_id}",
        ("what", "value"),
        [(k, _cell(v)) for k, v in pattern_document(pattern).items()],
    )
    rows = [(layer, " ".join(str(expert) for expert in experts)) for layer, experts in enumerate(best)]
    print_table(f"Experts kept at {chosen}, most needed first", ("layer", "experts"), rows)


@command.command("plot")
@click.argument("store_url")
@click.argument("name", required=False)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Picture to write: .png, .jpg, .webp, .svg or .pdf.",
)
@click.option("--budget", help="a/b.  [default: a quarter of the experts]")
@set_option
def plot(store_url: str, name: str | None, out: Path, budget: str | None, set_name: str | None) -> None:
    """Draw a pattern's heat map (layer × expert) beside the overlap of all the set's patterns.

    NAME is a task of the set, or the start of a pattern id; the set's first task by default.
    """
    from premoe_local.plots import pattern_picture, picture_format

    kind = picture_format(out)
    store = open_store(store_url)
    found = library.find_set(store, set_name)
    members = [Pattern.load(store.get, member.pattern_id) for member in found.members]
    pattern = members[0] if name is None else library.find_pattern(store, name, set_name)
    write_file(out, pattern_picture(pattern, members, _budget(budget, pattern, store), kind))
    note(f"wrote {out}")


def _budget(text: str | None, pattern: Pattern, store: Store) -> Budget:
    """The budget asked for, or a quarter of the experts. Raises InvalidInput where no pack of the store can run it."""
    if text is None:
        return Budget(1, max(1, pattern.num_experts // 4))
    budget = Budget.parse(text)
    widths = packed_top_k(store, pattern.weights_id)
    if widths:  # a pattern does not know how many experts its model gives a token
        budget.check(top_k=max(widths), num_experts=pattern.num_experts)
    return budget


def _set_document(found: PatternSet) -> dict[str, Any]:
    return {"set_id": found.set_id, **found.document.model_dump(mode="json")}


def _print_set(found: PatternSet, title: str) -> None:
    rows = [
        (
            member.task,
            member.kind,
            "-" if member.cutoff is None else f"{member.cutoff:.4f}",
            member.exemplars,
            member.held_out,
            member.pattern_id[:16],
        )
        for member in found.members
    ]
    print_table(title, ("task", "kind", "cutoff", "exemplars", "held out", "pattern"), rows)
    expected = found.document.expected
    if expected is not None:
        shares = (f"{expected.recognised:.1%}", f"{expected.abstained:.1%}")
        print_table(
            "Recognition, on calibration prompts", ("own task, in new wordings", "none, task left out"), [shares]
        )
    print_decided(found.document.decided)
    if found.splits is not None:
        kept = [count for share in (2, 4, 8) if (count := found.splits.num_experts // share)]
        splits = [
            [count, *("/".join(map(str, found.splits.layer_slots(count, n))) for n in (0, SPARE))] for count in kept
        ]
        print_table("Experts and slots of the layers", ("kept a layer", "experts", f"slots, {SPARE} spare"), splits)


def _print_masses(built: BuiltSet, profiles: Sequence[Profile]) -> None:
    budgets = [Budget.parse(each.budget) for each in built.pattern_set.document.generalist_retention]
    by_task: dict[str, list[Profile]] = {}
    for profile in profiles:
        by_task.setdefault(profile.task, []).append(profile)
    rows = [
        (
            pattern.task,
            *(f"{mean_retained_mass(pattern, by_task.get(pattern.task, profiles), budget):.3f}" for budget in budgets),
        )
        for pattern in built.patterns
    ]
    print_table("Router mass kept", ("pattern", *(str(budget) for budget in budgets)), rows)


def _cell(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    return str(value)
