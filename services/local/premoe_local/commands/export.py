"""`premoe export`: a static checkpoint of the experts that a pattern keeps, or of a whole pack."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast, get_args

import click

from premoe_local.byte_bar import Bar
from premoe_local.console import human_bytes, json_option, note, print_json
from premoe_local.mask_files import format_option, keep_option, read_mask_file
from premoe_runtime.formats.allocation import slots_text
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.formats.pattern import Pattern
from premoe_runtime.offline.export.cut import Cut, Spread, Target, cut, kept_by, usual_spread
from premoe_runtime.packs.reader import open_pack


@click.command("export")
@click.argument("model", metavar="PACK")
@click.option("--pattern", "name", metavar="TASK|FILE", help="Task of the pattern set, id of a pattern, or its file.")
@click.option(
    "--mask", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Another tool's mask instead."
)
@click.option("--whole", is_flag=True, help="All experts of the pack, such as one that `premoe compress` has written.")
@format_option
@keep_option
@click.option("--budget", help="a/b: experts a token, experts kept a layer.  [default with --mask: what it keeps]")
@click.option(
    "--allocation",
    "spread",
    type=click.Choice(get_args(Spread)),
    help="Keep equally many experts a layer, equally many in each of the router's groups, or as the pattern shares "
    "them.  [default: uniform; equal-per-group where the router has groups]",
)
@click.option(
    "--target",
    type=click.Choice(get_args(Target)),
    default="transformers",
    show_default=True,
    help="What loads it: transformers, and what reads its files, such as vLLM; or only `premoe pack`.",
)
@click.option("--to", required=True, metavar="DIR_OR_URL", help="Folder or s3:// URL that is empty or not there.")
@click.option("--set", "set_name", help="Pattern set, by id or the start of it.  [default: the live one]")
@click.option(
    "--accept-rescale", is_flag=True, help="Write it also where cutting changes the weights of the experts that stay."
)
@json_option
def command(
    model: str,
    name: str | None,
    mask: Path | None,
    whole: bool,
    form: str,
    keep: int | None,
    budget: str | None,
    spread: Spread | None,
    target: str,
    to: str,
    set_name: str | None,
    accept_rescale: bool,
    as_json: bool,
) -> None:
    """Write a static checkpoint that has only a pattern's experts, or all of a pack's.

    PACK is a pack (…/models/<id>) or an object store with one pack. The checkpoint is a Hugging Face folder, in the
    number format of the pack; its config.json and README.md say where it comes from. Nothing appears at DIR_OR_URL
    before it is whole; run a stopped export again and it goes on. Where a cut router would weigh experts otherwise than
    the whole one restricted to them, it is refused with the reason.
    """
    parsed = Budget.parse(budget) if budget else None
    if [name is not None, mask is not None, whole].count(True) != 1:
        raise click.UsageError("give one of --pattern, --mask and --whole")
    if whole and (parsed is not None or keep is not None or spread is not None):
        raise click.UsageError("--whole keeps every expert; leave --budget, --keep and --allocation out")
    reader = open_pack(model)
    manifest = reader.manifest()
    rules: dict[str, Any] = {"target": cast("Target", target), "accept_rescale": accept_rescale}
    if whole:
        chosen = _whole(manifest, rules)
    elif mask is not None:
        chosen = _masked(mask, manifest, form, keep, parsed, spread, rules)
    elif parsed is not None:
        chosen = _cut(_pattern(model, str(name), set_name), manifest, parsed, spread, rules)
    else:
        raise click.UsageError("--pattern needs a --budget a/b")
    from premoe_runtime.offline.export.writer import export  # torch: seconds, for what is right so far

    bar = Bar()
    with bar.rich:
        done = export(reader, chosen, to, bar)
    if as_json:
        print_json(
            {
                "url": done.url,
                "model_id": manifest.model_id,
                "weights_id": manifest.weights_id,
                "pattern_id": chosen.pattern.pattern_id,
                "task": chosen.pattern.task,
                "top_k": chosen.active,
                "experts": list(chosen.layer_experts),
                "allocation": chosen.spread,
                "num_bytes": done.num_bytes,
                "resumed_files": done.resumed_files,
                "rescales": chosen.rescales,
            }
        )
        return
    resumed = f", {done.resumed_files} files kept from an earlier run" if done.resumed_files else ""
    click.echo(
        f"exported {manifest.family} with {slots_text(chosen.layer_experts)} of {slots_text(manifest.layer_experts)} "
        f"experts a layer, {human_bytes(done.num_bytes)}{resumed}: {done.url}"
    )
    if chosen.rescales:
        note(f"note: it is not the model that runs under the pattern: {chosen.rescales}")


def _pattern(model: str, name: str, set_name: str | None) -> Pattern:
    """A pattern out of its file, or by its task or id out of the store that the pack lies in."""
    from premoe_runtime.offline.patterns.library import find_pattern, store_of

    if Path(name).is_file():
        return Pattern.from_bytes(Path(name).read_bytes(), where=name)
    return find_pattern(store_of(model), name, set_name)


def _cut(pattern: Pattern, manifest: Manifest, budget: Budget, spread: Spread | None, rules: dict[str, Any]) -> Cut:
    spread = spread or usual_spread(manifest.router)
    kept = kept_by(pattern, budget, spread, manifest)
    return cut(pattern, kept, manifest, active=budget.active, spread=spread, **rules)


def _whole(manifest: Manifest, rules: dict[str, Any]) -> Cut:
    from premoe_runtime.offline.masks.pattern import whole

    spread: Spread = usual_spread(manifest.router) if len(set(manifest.layer_experts)) == 1 else "ragged"
    return cut(whole(manifest), manifest.exists, manifest, active=manifest.top_k, spread=spread, **rules)


def _masked(
    path: Path,
    manifest: Manifest,
    form: str,
    keep: int | None,
    budget: Budget | None,
    spread: Spread | None,
    rules: dict[str, Any],
) -> Cut:
    """What a mask keeps, or the best of it where a budget says how many."""
    from premoe_runtime.offline.masks.pattern import imported, kept, usual_semantics

    mask = read_mask_file(path, manifest, form, keep)
    pattern = imported(mask, manifest, path.stem, usual_semantics(mask))
    if budget is not None:
        return _cut(pattern, manifest, budget, spread, rules)
    counts = set(mask.counts)
    spread = spread or (usual_spread(manifest.router) if len(counts) == 1 else "ragged")
    active = min(manifest.top_k, *counts)
    return cut(pattern, kept(mask, manifest), manifest, active=active, spread=spread, **rules)
