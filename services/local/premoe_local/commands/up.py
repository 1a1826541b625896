"""`premoe up`: the whole mesh on this machine."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, get_args

import click

from premoe_local.console import Text, interrupt_on_sigterm, json_option, note, parse_bytes, print_json, progress
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.choices import Allocation, EngineName, OnUnknown

if TYPE_CHECKING:
    from premoe_local.mesh import Mesh
    from premoe_runtime.formats.pattern_set import PatternSet

_COLOURS = ("cyan", "magenta", "green", "yellow", "blue")


@click.command(short_help="Start the whole mesh on this machine and serve the OpenAI API.")
@click.option("--model", required=True, help="Pack URL, or a store root that holds exactly one pack.")
@click.option(
    "--budget", required=True, help="Experts activated per token out of experts kept per layer on average, e.g. 4/16."
)
@click.option(
    "--allocation",
    type=click.Choice(get_args(Allocation)),
    default="shared",
    show_default=True,
    help="How experts and slots spread over the layers: as the live pattern set says, or equally many in each.",
)
@click.option("--slots", type=click.IntRange(1), help="Expert slots per layer on average [default: kept + spare].")
@click.option("--spare", type=click.IntRange(0), default=2, show_default=True, help="Slots beside a budget's.")
@click.option("--generalist-budget", default="", help="Budget of the generalist [default: that of --budget].")
@click.option(
    "--on-unknown",
    type=click.Choice(get_args(OnUnknown)),
    default="generalist",
    show_default=True,
    help="What runs when no stored task fits; full needs slots for all experts.",
)
@click.option("--deny", type=Text(), multiple=True, help="Task whose own experts no request gets, repeatable.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address of the HTTP API.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free port.")
@click.option("--keys-file", default="", help="API keys that callers need, see `premoe keys` [default: none].")
@click.option(
    "--cors-origin", multiple=True, help="Origin of web pages that may call from a browser, or *; repeatable."
)
@click.option("--max-body", help="Largest body of a request, e.g. 1MiB [default: 16MiB, which is the most].")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Worker processes.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads of each worker.")
@click.option("--device", default="cpu", show_default=True, help="Torch device of the workers.")
@click.option(
    "--engine",
    type=click.Choice(get_args(EngineName)),
    default="hf",
    show_default=True,
    help="What the workers run on: transformers, vLLM, or vLLM where it is installed and runs the model.",
)
@click.option("--engine-arguments", default="", help="vLLM's own arguments, as a JSON object [default: none].")
@click.option("--context", "context_length", type=click.IntRange(8), help="Longest prompt and answer, in tokens.")
@click.option("--max-sequences", type=click.IntRange(1), help="Sequences in one batch.")
@click.option("--host-memory", help="For expert blobs outside slots, e.g. 8GiB [default: one a slot].")
@click.option(
    "--cache-size",
    help="For experts in /dev/shm, or where temporary files lie, that workers open, e.g. 8GiB [default: all of them, "
    "within a quarter of free memory].",
)
@click.option("--name", "model_name", default="", help="Name under which the model is served.")
@click.option("--qdrant-url", default="", help="Qdrant server [default: its engine, in the retrieval process].")
@click.option("--redis-url", default="", help="Redis cache of experts, which workers read too [default: none].")
@click.option(
    "--record-signatures",
    type=click.IntRange(0, 1_000_000),
    default=0,
    show_default=True,
    help="Keep the routing signatures of so many requests, for `premoe patterns shadow`.",
)
@click.option("--console/--no-console", default=True, show_default=True, help="Serve a web page for people at /.")
@click.option("--metrics", is_flag=True, help="Serve Prometheus metrics of every process, each on a free port.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info")
@json_option
def command(
    model: str,
    budget: str,
    allocation: Allocation,
    slots: int | None,
    spare: int,
    generalist_budget: str,
    on_unknown: OnUnknown,
    deny: tuple[str, ...],
    host: str,
    port: int,
    keys_file: str,
    cors_origin: tuple[str, ...],
    max_body: str | None,
    workers: int,
    threads: int | None,
    device: str,
    engine: EngineName,
    engine_arguments: str,
    context_length: int | None,
    max_sequences: int | None,
    host_memory: str | None,
    cache_size: str | None,
    model_name: str,
    qdrant_url: str,
    redis_url: str,
    record_signatures: int,
    console: bool,
    metrics: bool,
    log_level: str,
    as_json: bool,
) -> None:
    """Start retrieval, expert store, workers and gateway, and serve until Ctrl-C.

    The OpenAI API is then at http://HOST:PORT/v1, and a console for people at http://HOST:PORT/. Logs of all processes
    go to standard error, each line behind the name of its process. When one of them stops, so does the whole mesh,
    with one line that says why; but a worker of several is started again while the others serve.
    """
    # Imported here: `premoe up --help` should not wait for the clients of object stores.
    from premoe_local.mesh import running
    from premoe_local.mesh_options import MeshOptions

    options = MeshOptions(
        model=model,
        budget=budget,
        allocation=allocation,
        slots=slots,
        spare=spare,
        generalist_budget=generalist_budget,
        on_unknown=on_unknown,
        deny=deny,
        host=host,
        port=port,
        workers=workers,
        threads=threads,
        device=device,
        engine=engine,
        engine_arguments=engine_arguments,
        context_length=context_length,
        max_sequences=max_sequences,
        host_memory_bytes=parse_bytes(host_memory) if host_memory else None,
        cache_bytes=parse_bytes(cache_size) if cache_size else None,
        model_name=model_name,
        qdrant_url=qdrant_url,
        redis_url=redis_url,
        record_signatures=record_signatures,
        console=console,
        metrics=metrics,
        keys_file=keys_file,
        cors_origins=cors_origin,
        max_body_bytes=parse_bytes(max_body) if max_body else None,
        log_level=log_level,
    )
    interrupt_on_sigterm("stopping")
    log = LogStream()
    with ExitStack() as stack:
        with progress("starting", quiet=as_json) as bar:
            mesh = stack.enter_context(running(options, log=log, step=lambda text: bar.update(description=text)))
        with suppress(KeyboardInterrupt):
            note(_unknown_prompts(mesh.live, on_unknown, Budget.parse(generalist_budget or budget)))
            if console:
                note(f"console: {mesh.url}/")
            if record_signatures:
                note(f"signatures are recorded: premoe patterns shadow … --retrieval {mesh.retrieval_address}")
            _announce(mesh, as_json=as_json)
            mesh.watch()


def _unknown_prompts(live: PatternSet | None, policy: OnUnknown, budget: Budget) -> str:
    """What prompts of no stored task get, and what the generalist was measured to keep."""
    if live is None:
        return (
            "note: there is no live pattern set, so every prompt runs on the full model; build one with "
            "`premoe patterns build … --set-live`"
        )
    kept = live.retention(budget) if policy == "generalist" else None
    if kept is None:
        return f"note: prompts of no stored task: {policy}"
    right = "" if kept.accuracy is None else f" and {kept.accuracy:.0%} of the right answers"
    keeps = f"{kept.mass:.0%} of the router's mass{right} at {budget}"
    return f"note: prompts of no stored task: {policy}, which keeps {keeps}"


def _announce(mesh: Mesh, *, as_json: bool) -> None:
    if not as_json:
        for name, address in mesh.metrics.items():
            note(f"metrics of {name}: http://{address}/metrics")
        click.echo(f"serving {mesh.model_name} at {mesh.url}/v1 (worker {mesh.worker_addresses[0]}); Ctrl-C stops")
        return
    print_json(
        {
            "url": mesh.url,
            "model": mesh.model_name,
            "metrics": dict(mesh.metrics),
            "gateway": mesh.gateway_address,
            "retrieval": mesh.retrieval_address,
            "store": mesh.store_address,
            "workers": list(mesh.worker_addresses),
            "admin": list(mesh.admin_addresses),
        }
    )


class LogStream:
    """Prints the children's lines to standard error, each behind the name of its process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._colours: dict[str, str] = {}

    def __call__(self, name: str, line: str) -> None:
        with self._lock:
            colour = self._colours.setdefault(name, _COLOURS[len(self._colours) % len(_COLOURS)])
            prefix = (
                click.style(f"{name:9} |", fg=colour)
                if sys.stderr.isatty() and "NO_COLOR" not in os.environ
                else f"{name:9} |"
            )
            click.echo(f"{prefix} {line}", err=True)
