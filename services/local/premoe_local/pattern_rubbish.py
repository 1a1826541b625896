"""`premoe patterns gc`: what a store holds and nobody needs any more."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from premoe_local.console import Number, date, human_bytes, json_option, print_json, print_table, progress
from premoe_local.retrieval_option import forget, index_option, tls_options
from premoe_runtime.offline.patterns.rubbish import Choice, Sweeper
from premoe_runtime.storage import ObjectInfo, open_store

if TYPE_CHECKING:
    from premoe_servicekit.tls import Tls

DAY_S = 86_400.0


def rubbish_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--sets``, ``--stale``, ``--days`` (a number) and ``--delete``."""
    options = (
        click.option("--sets", is_flag=True, help="Also sets that are not live and that nobody can roll back to."),
        click.option(
            "--stale", is_flag=True, help="Also sets and live pointers of weights that no pack here has any more."
        ),
        click.option(
            "--days",
            type=Number(0),
            default=1.0,
            show_default=True,
            help="Leave alone what was written since: somebody may be about to name it.",
        ),
        click.option("--delete", is_flag=True, help="Delete it.  [default: say what would be deleted]"),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command("gc")
@click.argument("store_url")
@rubbish_options
@index_option
@json_option
@tls_options
def collect(
    store_url: str,
    sets: bool,
    stale: bool,
    days: float,
    delete: bool,
    address: str | None,
    as_json: bool,
    tls: Tls | None,
) -> None:
    """Find patterns that no set names, and halves of sets, and delete them with --delete.

    Profiles and packs are left alone; so is whatever the live set and those before it need.
    """
    sweeper = Sweeper(open_store(store_url), Choice(time.time() - days * DAY_S, sets=sets, stale=stale))
    found = sweeper.find()
    if delete:
        forget(address, tls, filter(None, map(set_of, found)))
        with progress("deleting", len(found), quiet=as_json) as bar:
            gone = []
            for info in sweeper.remove(found):
                gone.append(info)
                bar.advance()
        found = gone
    _say(found, delete, as_json)


def set_of(info: ObjectInfo) -> str | None:
    """The set whose document this is."""
    folder, _, name = info.path.partition("/")
    return name.removesuffix(".json") if folder == "sets" and name.endswith(".json") else None


def _say(found: Sequence[ObjectInfo], deleted: bool, as_json: bool) -> None:
    num_bytes = sum(info.size for info in found)
    if as_json:
        objects = [{"path": info.path, "bytes": info.size, "written": date(info.modified)} for info in found]
        print_json({"deleted": deleted, "bytes": num_bytes, "objects": objects})
        return
    if found:
        rows = [(info.path, human_bytes(info.size), date(info.modified)) for info in found]
        print_table("Deleted" if deleted else "Nobody needs", ("object", "size", "written"), rows)
    click.echo(told(len(found), num_bytes, deleted=deleted))


def told(count: int, num_bytes: int, *, deleted: bool) -> str:
    """The last line: how much went, or would."""
    much = f"{count} objects, {human_bytes(num_bytes)}"
    return f"deleted {much}" if deleted else f"{much}; nothing was deleted" + ("; --delete does" if count else "")
