"""`premoe import-mask`: which experts another tool keeps, as a pattern that requests can name."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from premoe_local.console import json_option, note, print_json, print_table
from premoe_local.mask_files import format_option, keep_option, read_mask_file
from premoe_local.signatures import signatures_of
from premoe_runtime.formats.allocation import slots_text
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.choices import Semantics
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.formats.pattern import pattern_path
from premoe_runtime.formats.pattern_set import PatternSet
from premoe_runtime.offline.calibration import PassedOver, check_task
from premoe_runtime.offline.masks.pattern import imported, joined, usual_semantics
from premoe_runtime.offline.masks.read import KeptExperts
from premoe_runtime.offline.patterns import library
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.storage import Store


@click.command("import-mask")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--pack", "model", required=True, metavar="PACK", help="The pack (…/models/<id>) that the mask is of.")
@click.option("--task", required=True, metavar="NAME", help="What requests call the pattern.")
@format_option
@keep_option
@click.option(
    "--semantics",
    type=click.Choice(get_args(Semantics)),
    help="What absent experts do to the weights of others: nothing, or as if their rows were cut off the router.  "
    "[default: slice for reap and vllm-ascend, else selection]",
)
@click.option(
    "--prompts",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help='JSONL of the task\'s prompts, 20 at least, by which it is recognised: {"prompt": …} or {"messages": […]}.',
)
@click.option("--to", help="Object store to write to.  [default: the one PACK lies in]")
@click.option("--set", "set_name", help="Pattern set to add the pattern to.  [default: the live one, or a new one]")
@click.option("--set-live", is_flag=True, help="Make the set with the pattern in it the live one.")
@json_option
def command(
    file: Path,
    model: str,
    task: str,
    form: str,
    keep: int | None,
    semantics: Semantics | None,
    prompts: Path | None,
    to: str | None,
    set_name: str | None,
    set_live: bool,
    as_json: bool,
) -> None:
    """Store another tool's mask of experts as a pattern.

    FILE is one of EASY-EP (a row of 0 and 1 a layer), vLLM-Ascend (JSONL, a list of experts a block), REAP
    (kept_experts, retained_experts or pruned_experts by block), or our own {"layers": [[…], …]}. The pattern joins a
    set, where requests name it ("pattern": NAME); with --prompts the task is recognised, too.
    """
    check_task(task)
    reader, store = open_pack(model), library.store_of(model, to)
    manifest = reader.manifest()
    mask = read_mask_file(file, manifest, form, keep)
    pattern = imported(mask, manifest, task, semantics or usual_semantics(mask))
    unused, before = PassedOver(), _set(store, manifest.weights_id, set_name)
    signatures = None if prompts is None else signatures_of(reader, prompts, unused)
    made = joined(before, pattern, signatures)
    store.put(pattern_path(pattern.pattern_id), pattern.to_bytes())
    set_id = library.put_set(store, made, live=set_live)
    budget, exact = _budget(mask, manifest)
    if as_json:
        print_json(
            {
                "pattern_id": pattern.pattern_id,
                "task": task,
                "weights_id": manifest.weights_id,
                "format": mask.format,
                "semantics": pattern.semantics,
                "allocation": pattern.allocation,
                "kept": list(mask.counts),
                "budget": str(budget),
                "exemplars": made.member(task).exemplars,
                "set_id": set_id,
                "live": set_live,
            }
        )
        return
    rows = [
        ("read as", mask.format),
        ("kept a layer", slots_text(mask.counts)),
        ("semantics", pattern.semantics),
        ("budget that keeps it", str(budget)),
        ("recognised", "by its prompts" if signatures is not None else "no: requests name it"),
        ("set", f"{set_id[:16]}{' (live)' if set_live else ''}"),
    ]
    print_table(f"Pattern {pattern.pattern_id} ({task})", ("what", "value"), rows)
    if not exact:
        note(f"note: no budget keeps just these {sum(mask.counts)} experts; {budget} keeps a few more")
    if unused.note:
        note(f"note: {unused.note}")
    if not set_live:
        note("note: the set is not live; make it so with --set-live, or `premoe patterns set-live`")


def _set(store: Store, weights_id: str, name: str | None) -> PatternSet | None:
    """The set to join; None where none is named and none is live. Raises NotFound where it is not whole."""
    if name is None and library.live_set_id(store, weights_id) is None:
        return None
    found = library.load_set(store, weights_id, name)
    library.check_whole(store, found)
    return found


def _budget(mask: KeptExperts, manifest: Manifest) -> tuple[Budget, bool]:
    """The least budget that keeps the whole mask, and whether it keeps no more."""
    kept, more = divmod(sum(mask.counts), manifest.num_layers)
    whole = kept + bool(more)
    return Budget(min(manifest.top_k, *mask.counts), whole), not more
