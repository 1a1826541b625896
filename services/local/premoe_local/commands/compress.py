"""`premoe compress`: smaller models out of packs, by the methods of many papers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from premoe_local.compress import upcycle_command
from premoe_local.compress.compare_command import compare
from premoe_local.console import json_option, print_json, print_table

if TYPE_CHECKING:
    from premoe_runtime.compress.method import Elsewhere, Method


class _Methods(click.Group):
    """A group whose subcommands are the registry's methods, beside its own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from premoe_runtime.compress.registry import METHODS

        return [*super().list_commands(ctx), *METHODS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if (own := super().get_command(ctx, cmd_name)) is not None:
            return own
        from premoe_local.compress.method_command import method_command
        from premoe_runtime.compress.registry import find

        return method_command(find(cmd_name))


@click.group("compress", cls=_Methods, no_args_is_help=True)
def command() -> None:
    """Write a smaller model: merge experts, drop them, or narrow them, by methods of many papers.

    `premoe compress METHOD PACK --data TASK=FILE --to URL --budget 25%` writes a new pack, with its provenance;
    `premoe export` turns it into a checkpoint. `premoe compress list` says what each method changes, needs and costs.
    `premoe compress compare` measures them at equal bytes on your model and data; docs/compress.md says what each is
    good for, measured beside pruning and retrieval.
    """


command.add_command(upcycle_command.command)
command.add_command(compare)


@command.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the methods: what each changes, needs and costs, and which engines load the result."""
    from premoe_runtime.compress.registry import ELSEWHERE, METHODS

    if as_json:
        names = ("name", "title", "source", "changes", "needs", "cost", "loads")
        entries = [{name: getattr(method, name) for name in names} for method in METHODS.values()]
        others = [{name: getattr(one, name) for name in (*names, "use")} for one in ELSEWHERE.values()]
        print_json({"methods": entries, "elsewhere": others})
        return
    columns = ("method", "what it does", "changes", "needs", "cost", "loads in", "source")
    print_table("Methods of compression", columns, map(_row, METHODS.values()))
    rows = [(*_row(one), one.use) for one in ELSEWHERE.values()]
    print_table("Neighbours that make no pack of a pack", (*columns, "where"), rows)


def _row(one: Method | Elsewhere) -> tuple[str, ...]:
    changes, needs = ", ".join(one.changes), ", ".join(one.needs) or "-"
    return one.name, one.title, changes, needs, one.cost, one.loads, one.source
