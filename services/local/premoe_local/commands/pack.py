"""`premoe pack`: write and verify packs."""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter

import click

from premoe_local.byte_bar import Bar
from premoe_local.console import human_bytes, json_option, print_json
from premoe_local.default_group import DefaultGroup
from premoe_runtime.packs.place import tenant_root
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.packs.repair import pack_or_repair
from premoe_runtime.packs.source import check_tokenizer, open_source
from premoe_runtime.packs.verify import Verification, verify_pack
from premoe_runtime.packs.writer import PackResult
from premoe_runtime.storage import open_store


@click.group(cls=DefaultGroup, default="write", no_args_is_help=True)
def command() -> None:
    """Turn a checkpoint into a pack in object storage, or verify one.

    SRC is a checkpoint folder, or a file://, s3:// or hf://org/name[@revision] URL (a branch, a tag, a commit, or
    refs/pr/N); URL is an object store root (a folder, file://, s3://bucket/prefix), where the pack appears as
    models/MODEL_ID. Running it again continues a killed run; a pack that is there already is read whole, and what is
    damaged in it is written again. S3 takes the usual AWS_* variables and the files that AWS_PROFILE leads to, hf://
    takes HF_ENDPOINT, HF_TOKEN and the token of `hf auth login`.
    """


@command.command("write")
@click.argument("source", metavar="SRC")
@click.option("--to", "url", metavar="URL", required=True, help="Object store root: file://, s3:// or a folder.")
@click.option(
    "--without-tokenizer", is_flag=True, help="Pack a checkpoint that has none; only token ids can be served."
)
@click.option("--tenant", metavar="NAME", help="Whose pack it is: others never hear of it. Default: everybody's.")
@json_option
def write(source: str, url: str, without_tokenizer: bool, tenant: str | None, as_json: bool) -> None:
    """Write the pack of the checkpoint SRC to the object store at URL."""
    opened, store = open_source(source), open_store(url if tenant is None else tenant_root(url, tenant))
    if not without_tokenizer:
        check_tokenizer(opened)
    bar = Bar()
    with bar.rich:
        result = pack_or_repair(opened, store, bar)
    if as_json:
        print_json(_written(result))
        return
    manifest = result.manifest
    size = human_bytes(manifest.experts_bytes + manifest.skeleton_bytes)
    if result.already_packed:
        click.echo(f"already packed, every digest checked: {result.url}")
    elif result.repaired:
        click.echo(f"repaired {', '.join(result.repaired)}: {result.url}")
    else:
        resumed = f", {result.resumed_layers} layers kept from an earlier run" if result.resumed_layers else ""
        click.echo(f"packed {manifest.family}, {size}{resumed}: {result.url}")
    for why, group in groupby(sorted(result.dropped, key=itemgetter(1, 0)), itemgetter(1)):
        first, *more = (name for name, _ in group)
        click.echo(f"left out ({why}): {first}{f' and {len(more)} more' if more else ''}", err=True)


@command.command("verify")
@click.argument("url", metavar="URL")
@json_option
def verify(url: str, as_json: bool) -> None:
    """Read the whole pack at URL and check every digest; exit code 5 when something is damaged."""
    reader = open_pack(url)
    bar = Bar()
    with bar.rich:
        verification = verify_pack(reader, bar)
    if as_json:
        print_json(_verified(verification))
    verification.raise_for_faults()
    if not as_json:
        blobs = verification.manifest.num_blobs
        click.echo(f"good: {blobs} blobs, {human_bytes(verification.bytes_read)} read, {verification.url}")


def _written(result: PackResult) -> dict[str, object]:
    manifest = result.manifest
    return {
        "model_id": manifest.model_id,
        "weights_id": manifest.weights_id,
        "family": manifest.family,
        "layers": manifest.num_layers,
        "experts": manifest.num_experts,
        "blob_bytes": manifest.layout.blob_bytes,
        "skeleton_bytes": manifest.skeleton_bytes,
        "bytes_read": result.bytes_read,
        "bytes_written": result.bytes_written,
        "resumed_layers": result.resumed_layers,
        "already_packed": result.already_packed,
        "repaired": list(result.repaired),
        "dropped": [name for name, _ in result.dropped],
        "url": result.url,
    }


def _verified(verification: Verification) -> dict[str, object]:
    manifest = verification.manifest
    return {
        "model_id": manifest.model_id,
        "weights_id": manifest.weights_id,
        "blobs": manifest.num_blobs,
        "bytes_read": verification.bytes_read,
        "good": not verification.faults,
        "faults": [{"object": fault.object, "problem": fault.problem} for fault in verification.faults],
        "url": verification.url,
    }
