"""`premoe doctor`: what is wrong with this machine and what flags name, why it matters, and how to change it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from premoe_local.console import Number, json_option, progress
from premoe_local.doctor.examination import Asked, examine
from premoe_local.doctor.finding import worst
from premoe_local.doctor.report import show
from premoe_local.doctor.tls_files import TlsFiles
from premoe_local.retrieval_option import tls_options

_tls_files = partial(tls_options, make=TlsFiles)


@click.command("doctor")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder of a cache: measure its disk, with a file that is written there and removed.",
)
@click.option("--redis", metavar="URL", help="Redis that caches experts: redis://… or rediss://….")
@click.option("--store", metavar="URL", help="Object store: a folder, file:// or s3://….")
@click.option("--expert-store", metavar="HOST:PORT", help="Address of an expert store.")
@click.option("--timeout", type=Number(0.1), default=10.0, show_default=True, help="Seconds for each server to answer.")
@click.option(
    "--disk-seconds", type=Number(0.1), default=2.0, show_default=True, help="Seconds of writing, and of reading."
)
@json_option
@_tls_files
@click.pass_context
def command(
    context: click.Context,
    folder: Path | None,
    redis: str | None,
    store: str | None,
    expert_store: str | None,
    timeout: float,
    disk_seconds: float,
    as_json: bool,
    tls: TlsFiles | None,
) -> None:
    """Check this machine, and what the flags name: what is wrong, why it matters, and how to change it.

    Network, memory, limits and threads are always looked at. Nothing is asked of a network that no flag names. Run it
    where workers and expert stores run, in their container: it sees what they see.

    Exit code 0: nothing worse than warnings; 1: an error was found; 2 and above, as everywhere: it could not look.
    """
    with progress("looking", quiet=as_json, counts=False) as bar:
        asked = Asked(folder, tls, redis, store, expert_store, timeout, disk_seconds)
        findings = examine(asked, lambda what: bar.update(description=f"looking at {what}"))
    show(findings, as_json=as_json)
    context.exit(1 if worst(findings) == "error" else 0)
