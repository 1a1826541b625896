"""Command groups one of whose subcommands needs no name: `premoe pack SRC` is `premoe pack write SRC`."""

from __future__ import annotations

from typing import Any

import click


class DefaultGroup(click.Group):
    """A group that runs its subcommand ``default`` when none is named, and shows its options as the group's own."""

    def __init__(self, *arguments: Any, default: str, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._default = default

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = [self._default, *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in super().list_commands(ctx) if name != self._default]

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return self.commands[self._default].collect_usage_pieces(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        click.Command.format_options(self.commands[self._default], ctx, formatter)
        self.format_commands(ctx, formatter)
