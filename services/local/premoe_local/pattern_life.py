"""Which pattern set is live: choose, roll back, look back. Part of `premoe patterns`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from premoe_local.console import date, json_option, print_json, print_table
from premoe_runtime.offline.patterns import life
from premoe_runtime.storage import open_store

weights_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--weights", help="Weights whose live set is meant, by the start of their id.  [default: the only ones]"
)
pack_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--pack", metavar="PACK", help="Pack that the set is for.  [default: one in the same store]"
)


@click.command("set-live")
@click.argument("store_url")
@click.argument("name", metavar="SET")
@pack_option
@json_option
def set_live(store_url: str, name: str, pack: str | None, as_json: bool) -> None:
    """Make SET, named by the start of its id, the live set of its weights.

    What serves these weights takes it up at its next look, within seconds. The set before can be had back with
    `premoe patterns rollback`. A stale set, one of weights that no pack has any more, is refused.
    """
    found = life.set_live(open_store(store_url), name, pack)
    if as_json:
        print_json({"set_id": found.set_id, "weights_id": found.weights_id})
    else:
        click.echo(f"set {found.set_id} is live for weights {found.weights_id[:16]}")


@click.command("rollback")
@click.argument("store_url")
@click.option("--to", metavar="SET", help="An earlier live set, by the start of its id.  [default: the one before]")
@weights_option
@pack_option
@json_option
def roll_back(store_url: str, to: str | None, weights: str | None, pack: str | None, as_json: bool) -> None:
    """Make the set that was live before the live one again.

    The set rolled back from stays in the store, marked as withdrawn: rolling back again goes one further back, not to
    it. `premoe patterns set-live` makes it live again.
    """
    found, withdrawn = life.roll_back(open_store(store_url), weights, to, pack)
    if as_json:
        print_json({"set_id": found.set_id, "weights_id": found.weights_id, "withdrawn": withdrawn})
    else:
        click.echo(f"set {found.set_id} is live again for weights {found.weights_id[:16]}, {withdrawn[:16]} is not")


@click.command("history")
@click.argument("store_url")
@weights_option
@json_option
def history(store_url: str, weights: str | None, as_json: bool) -> None:
    """List the live set and those that were live, the one that was made live last first."""
    store = open_store(store_url)
    weights_id = life.find_weights(store, weights)
    sets = [_entry(version) for version in life.history(store, weights_id)]
    if as_json:
        print_json({"weights_id": weights_id, "sets": sets})
        return
    rows = [
        (one["set_id"][:16], one["state"], one["since"] or "-", ", ".join(one["tasks"]) if one["stored"] else "gone")
        for one in sets
    ]
    print_table(f"Live sets of weights {weights_id[:16]}", ("set", "state", "live since", "tasks"), rows)


def _entry(version: life.Listed) -> dict[str, Any]:
    stored = version.stored
    return {
        "set_id": version.set_id,
        "state": version.state,
        "since": None if version.since is None else date(version.since),
        "stored": stored is not None,
        "tasks": [] if stored is None else [member.task for member in stored.specialists],
    }
