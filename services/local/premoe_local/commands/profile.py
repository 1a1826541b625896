"""`premoe profile`: one pass over a task's calibration text, one mergeable profile."""

from __future__ import annotations

import time
from pathlib import Path
from typing import cast, get_args

import click

from premoe_local.console import json_option, print_json, print_table, progress
from premoe_runtime.offline.calibration import Answers, check_task, read_calibration


@click.command("profile")
@click.argument("model")
@click.option("--task", required=True, help="Name of the task, for example add.")
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path),
    help='JSONL, one object a line: {"prompt": …, "answer": …} or {"messages": […]}.',
)
@click.option(
    "--answers",
    type=click.Choice(get_args(Answers)),
    default="given",
    show_default=True,
    help="Run prompts with the answers in the file, with the model's own, or alone (open text: every token counts).",
)
@click.option("--router-only", is_flag=True, help="Leave the backward pass out: quicker, but no ranking by impact.")
@click.option("--to", help="Object store to write to.  [default: the one MODEL lies in]")
@click.option("--limit", type=click.IntRange(min=1), help="Take at most this many examples.")
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
@json_option
def command(
    model: str,
    task: str,
    data: Path,
    answers: str,
    router_only: bool,
    to: str | None,
    limit: int | None,
    skip: int,
    threads: int | None,
    device: str,
    dtype: str,
    as_json: bool,
) -> None:
    """Measure which experts a task's prompts use, and what its answers would lose without them.

    MODEL is a pack (…/models/<id>) or an object store with one pack. The profile holds sums that merge exactly: a
    file profiled in two parts (--limit, --skip) gives the same patterns as in one. Its name is printed;
    `premoe patterns build` turns profiles into patterns.
    """
    check_task(task)
    how = cast("Answers", answers)
    examples = read_calibration(data, answers=how, limit=limit, skip=skip)
    # Torch is slow to import, so faults in the files are reported first.
    from premoe_runtime.offline.patterns.library import put_profile, store_of
    from premoe_runtime.offline.profile.measure import load_full_model, measure_profile
    from premoe_runtime.offline.profile.record import profile_path
    from premoe_runtime.packs.reader import open_pack

    store = store_of(model, to)
    with progress("loading the model", counts=False):
        slot_model = load_full_model(open_pack(model), threads=threads, device=device, dtype=dtype)
    started = time.perf_counter()
    with progress(f"profiling {task}", total=len(examples)) as bar:
        profile = measure_profile(
            slot_model,
            examples,
            task=task,
            answers=how,
            where=str(data),
            impact=not router_only,
            advance=lambda count: bar.advance(count),
        )
    seconds = time.perf_counter() - started
    profile_id = put_profile(store, profile)
    if as_json:
        print_json(
            {
                "profile_id": profile_id,
                "url": store.at(profile_path(profile_id)),
                "task": task,
                "weights_id": profile.weights_id,
                "samples": profile.samples,
                "tokens": profile.tokens,
                "seconds": seconds,
            }
        )
        return
    rows = [(task, profile.samples, profile.tokens, f"{profile.tokens / seconds:.0f}", profile_id)]
    print_table(f"Profile written to {store.url}", ("task", "prompts", "tokens", "tokens/s", "profile"), rows)
