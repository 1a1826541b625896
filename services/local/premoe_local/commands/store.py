"""`premoe store`: see what a running expert store's cache holds, and warm it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from premoe_local.console import Text, json_option, note, print_json, progress
from premoe_local.retrieval_option import tls_options
from premoe_local.store_client import Counts, expert_store
from premoe_local.store_warming import everything, of_tasks, wait
from premoe_local.store_watching import Screen, document
from premoe_runtime.formats.errors import Exhausted, Unavailable
from premoe_runtime.storage import open_store

if TYPE_CHECKING:
    from premoe_servicekit.tls import Tls

_ADDRESS = click.argument("address", type=Text())
_MODEL_ID: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--model-id", type=Text(), default="", help="Pack, also TENANT/ID.  [default: the only one that the store serves]"
)


@click.group("store")
def command() -> None:
    """See what the cache of a running expert store holds, and warm it before a rollout.

    ADDRESS is host:port of the store's gRPC. With several replicas one of them answers, and each has a cache.
    """


@command.command()
@_ADDRESS
@_MODEL_ID
@click.option("--once", is_flag=True, help="Tell the state of now, and end.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line an event instead of text.")
@tls_options
def watch(address: str, model_id: str, once: bool, as_json: bool, tls: Tls | None) -> None:
    """Show what the cache holds of a pack and what is on its way, until Ctrl-C.

    Also experts whose copies turned out wrong, which the store reads again from elsewhere, and a pack that is gone.
    """
    with expert_store(address, tls, model_id) as store:
        manifest = store.manifest()
        with Screen(manifest.num_blobs, manifest.layout.blob_bytes) as screen:
            for event in store.watch():
                if not as_json:
                    screen.tell(event)
                elif (told := document(event, manifest.num_blobs)) is not None:
                    click.echo(json.dumps(told))
                if once and event.HasField("progress"):
                    return


@command.command()
@_ADDRESS
@click.argument("store_url", required=False)
@click.option("--all", "all_experts", is_flag=True, help="All experts of the pack; needs no STORE_URL.")
@click.option("--task", "tasks", multiple=True, type=Text(), help="Task of the live set, repeatable.  [default: all]")
@click.option("--budget", help="a/b whose experts the tasks keep.  [default: half of the experts]")
@_MODEL_ID
@click.option("--wait", "until_there", is_flag=True, help="Follow them until they are there.")
@json_option
@tls_options
def prefetch(
    address: str,
    store_url: str | None,
    all_experts: bool,
    tasks: tuple[str, ...],
    budget: str | None,
    model_id: str,
    until_there: bool,
    as_json: bool,
    tls: Tls | None,
) -> None:
    """Have a store bring experts into its cache, as far as that costs others none of theirs.

    Those that the live patterns keep in the object store at STORE_URL, best first; or --all. What is refused had no
    room: with --wait that is exit code 7, and 6 where experts do not come.
    """
    if all_experts == (store_url is not None):
        raise click.UsageError("give STORE_URL, which has the live patterns, or --all")
    if all_experts and (tasks or budget):
        raise click.UsageError("--task and --budget choose from STORE_URL's live patterns, --all takes every expert")
    with expert_store(address, tls, model_id) as store:
        manifest = store.manifest()
        wanted = everything(manifest) if store_url is None else of_tasks(open_store(store_url), manifest, tasks, budget)
        if until_there:
            with progress("experts", len(wanted), quiet=as_json) as bar:
                counts = wait(
                    lambda: store.prefetch(wanted),
                    store.state,
                    lambda now: bar.update(completed=now.present, total=now.present + now.under_way),
                )
        else:
            counts = store.prefetch(wanted)
    _say(manifest.model_id, len(wanted), counts, as_json=as_json)
    if until_there and counts.under_way:
        raise Unavailable(f"{counts.under_way} experts did not come; the expert store's log says why")
    if counts.refused:
        refused = f"{counts.refused} experts were refused: the cache has no room that would not cost others theirs"
        if until_there:
            raise Exhausted(f"{refused}; give it more, or a smaller --budget", reason="CACHE_FULL")
        note(f"note: {refused}")


def _say(model_id: str, wanted: int, counts: Counts, *, as_json: bool) -> None:
    if as_json:
        print_json({"model_id": model_id, "experts": wanted, **counts._asdict()})
        return
    click.echo(
        f"{wanted} experts of pack {model_id[:16]}: {counts.present} present, {counts.under_way} under way, "
        f"{counts.refused} refused"
    )
