"""`premoe compress upcycle`: a dense checkpoint turned into one with experts."""

from __future__ import annotations

import click

from premoe_local.byte_bar import Bar
from premoe_local.console import human_bytes, json_option, print_json
from premoe_runtime.packs.source import open_source


@click.command("upcycle")
@click.argument("dense")
@click.option("--experts", type=click.IntRange(min=2), required=True, help="Experts a layer.")
@click.option("--top-k", type=click.IntRange(min=1), required=True, help="Experts a token.")
@click.option(
    "--split", type=click.IntRange(min=1), default=1, show_default=True, help="Parts that a copy is cut into."
)
@click.option("--noise", type=float, default=0.0, show_default=True, help="On experts, as a part of weights' spread.")
@click.option("--router", type=float, default=1.0, show_default=True, help="Spread of the new routers' logits.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of noise and routers.")
@click.option("--to", required=True, metavar="DIR_OR_URL", help="Folder or s3:// URL that is empty or not there.")
@json_option
def command(
    dense: str,
    experts: int,
    top_k: int,
    split: int,
    noise: float,
    router: float,
    seed: int,
    to: str,
    as_json: bool,
) -> None:
    """Turn a dense checkpoint into one with experts: qwen3 to qwen3_moe, llama and mistral to mixtral.

    DENSE is a folder, an s3:// prefix or hf://org/name. Every MLP becomes copies of itself, or of its parts with
    --split, behind a new router; without noise the model computes what the dense one did. The result is a Hugging Face
    folder for `premoe pack`; `premoe compress shape` trains the pack so that its experts part. Weights pass tensor by
    tensor; run a stopped one again and it goes on.
    """
    from premoe_runtime.compress.upcycling.plan import plan
    from premoe_runtime.compress.upcycling.siblings import Upcycling
    from premoe_runtime.compress.upcycling.weights import DenseWeights
    from premoe_runtime.compress.upcycling.writer import write

    source = open_source(dense)
    planned = plan(source, Upcycling(experts, top_k, split, noise, router, seed))
    bar = Bar()
    with bar.rich:
        done = write(source, planned, DenseWeights(source.store, planned.what), to, progress=bar)
    if as_json:
        print_json(
            {
                "url": done.url,
                "family": planned.model.family,
                "experts": experts,
                "top_k": top_k,
                "width": planned.model.shapes["down"][1],
                "num_bytes": done.num_bytes,
                "resumed_files": done.resumed_files,
            }
        )
        return
    click.echo(
        f"upcycled to {planned.model.family}: {experts} experts a layer of {planned.model.shapes['down'][1]} neurons, "
        f"{top_k} a token, {human_bytes(done.num_bytes)}: {done.url}"
    )
