"""`premoe compress upcycle`: a dense checkpoint turned into one with experts, trained if wanted."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import blake3
import click

from premoe_local.byte_bar import Bar
from premoe_local.compress.method_command import read_data
from premoe_local.compress.report import ConsoleReport
from premoe_local.console import human_bytes, json_option, print_json
from premoe_runtime.packs.source import Source, open_source

if TYPE_CHECKING:
    from premoe_runtime.compress.upcycling.plan import Planned
    from premoe_runtime.compress.upcycling.weights import Content


@click.command("upcycle")
@click.argument("dense")
@click.option("--experts", type=click.IntRange(min=2), required=True, help="Experts a layer.")
@click.option("--top-k", type=click.IntRange(min=1), required=True, help="Experts a token.")
@click.option(
    "--split", type=click.IntRange(min=1), default=1, show_default=True, help="Parts that a copy is cut into."
)
@click.option("--noise", type=float, default=0.0, show_default=True, help="On experts, as a part of weights' spread.")
@click.option("--router", type=float, default=1.0, show_default=True, help="Spread of the new routers' logits.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of whatever is drawn.")
@click.option("--to", required=True, metavar="DIR_OR_URL", help="Folder or s3:// URL that is empty or not there.")
@click.option(
    "--steps", type=click.IntRange(min=0), default=0, show_default=True, help="Steps of training, with --data."
)
@click.option(
    "--data", multiple=True, metavar="TASK=FILE", help="Examples with answers to train on, JSONL, repeatable."
)
@click.option(
    "--dirichlet", type=float, default=0.1, show_default=True, help="Concentration of routers' prior; 0: none."
)
@click.option("--shaping", type=float, default=1.0, show_default=True, help="Weight of the prior.")
@click.option("--rate", type=float, default=1e-3, show_default=True, help="Highest learning rate.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.")
@click.option("--device", default="cpu", show_default=True, help="Torch device, for example cuda.")
@click.option(
    "--work", type=click.Path(path_type=Path), help="Folder for training.  [default: premoe/spool in the user's cache]"
)
@json_option
def command(dense: str, to: str, as_json: bool, **options: Any) -> None:
    """Turn a dense checkpoint into one with experts: qwen3 to qwen3_moe, llama and mistral to mixtral.

    DENSE is a folder, an s3:// prefix or hf://org/name. Every MLP becomes copies of itself, or of its parts with
    --split, behind a new router; without noise the model computes what the dense one did. With --steps experts and
    routers are trained, whole in memory; `premoe compress shape` goes on with that. The result is a Hugging Face folder
    for `premoe pack`. Weights pass tensor by tensor; run a stopped one again and it goes on.
    """
    from premoe_runtime.compress.upcycling.plan import plan
    from premoe_runtime.compress.upcycling.siblings import Upcycling
    from premoe_runtime.compress.upcycling.weights import DenseWeights
    from premoe_runtime.compress.upcycling.writer import write

    if bool(options["steps"]) != bool(options["data"]):
        raise click.UsageError("give --steps and --data together, or neither")
    what = Upcycling(*(options[name] for name in ("experts", "top_k", "split", "noise", "router", "seed")))
    source = open_source(dense)
    planned = plan(source, what)
    content: Content = DenseWeights(source.store, what)
    training, work = None, None
    if options["steps"]:
        work = _work(source, options)
        content, training = _trained(source, planned, work, options)
    bar = Bar()
    with bar.rich:
        done = write(source, planned, content, to, training=training, progress=bar)
    if work is not None:
        shutil.rmtree(work, ignore_errors=True)
    width = planned.model.shapes["down"][1]
    if as_json:
        counts = {"experts": what.experts, "top_k": what.top_k, "width": width, "steps": options["steps"]}
        sizes = {"num_bytes": done.num_bytes, "resumed_files": done.resumed_files}
        print_json({"url": done.url, "family": planned.model.family, **counts, **sizes})
        return
    click.echo(
        f"upcycled to {planned.model.family}: {what.experts} experts a layer of {width} neurons, {what.top_k} a token, "
        f"{human_bytes(done.num_bytes)}: {done.url}"
    )


def _work(source: Source, options: dict[str, Any]) -> Path:
    """Of this source and these options alone."""
    from premoe_runtime.offline.profile.spool import default_spool

    said = {name: value for name, value in options.items() if name not in ("work", "threads", "device")}
    key = blake3.blake3(repr((source.key, said)).encode()).hexdigest()[:16]
    folder: Path = (options["work"] or default_spool()) / f"compress-upcycle-{key}"
    return folder


def _trained(
    source: Source, planned: Planned, work: Path, options: dict[str, Any]
) -> tuple[Content, dict[str, object]]:
    from premoe_runtime.compress.methods.shape import Settings
    from premoe_runtime.compress.upcycling.training import trained

    settings = Settings(**{name: options[name] for name in ("steps", "rate", "dirichlet", "shaping")})
    report, data = ConsoleReport(), read_data(options["data"], None, answers=True)
    try:
        return trained(
            source, planned, data, settings, work, device=options["device"], threads=options["threads"], report=report
        )
    finally:
        report.close()
