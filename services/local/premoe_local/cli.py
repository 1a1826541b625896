"""The `premoe` command: a group whose subcommands are imported only when they are called.

Knows the names and one-line descriptions of the commands, and nothing else; `premoe --help` imports no torch.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

import click

from premoe_local.console import CommandError, from_exception

_SECTIONS: dict[str, dict[str, str]] = {
    "Prepare a model": {
        "pack": "Turn a checkpoint into a pack in object storage, or verify one.",
        "size": "Say what a model takes at which budgets, and what fits into a memory size.",
    },
    "Find the experts of a task": {
        "profile": "Measure which experts tasks' prompts use; list and remove profiles.",
        "scores": "List the scores that rank experts, and what each needs.",
        "patterns": "Build, list, show, try, choose, roll back and remove pattern sets.",
        "eval": "Measure accuracy and perplexity at several budgets.",
    },
    "Make it smaller": {
        "compress": "Write a smaller model: merge experts, drop them, or narrow them.",
    },
    "Look after it": {
        "doctor": "Check this machine, Redis, object storage and TLS files: what slows or breaks it.",
        "store": "Watch what an expert store's cache holds, and warm it before a rollout.",
        "gc": "Find what nobody needs in a store, packs and patterns, and delete it.",
    },
    "Exchange with other tools": {
        "export": "Write a static checkpoint that has only a pattern's experts.",
        "import-mask": "Store another tool's mask of experts as a pattern.",
    },
    "Serve": {
        "up": "Start the whole mesh on this machine and serve the OpenAI API.",
        "keys": "Make, list and revoke the API keys that a gateway asks for.",
        "generate": "Send one prompt to a worker and print the answer as it comes.",
        "bench": "Load an OpenAI endpoint, ours or another's, and measure what its answers take.",
        "demo": "Pack, profile, serve and measure the small fixture model.",
    },
}


class LazyGroup(click.Group):
    """Imports `premoe_local.commands.<name>` on first use, and turns known errors into one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for section in _SECTIONS.values() for name in section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command = importlib.import_module(f"premoe_local.commands.{cmd_name.replace('-', '_')}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in _SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl(list(commands.items()))

    def invoke(self, ctx: click.Context) -> object:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # a full disk is told here, not by the interpreter's last words
            return result
        except KeyboardInterrupt:
            raise click.exceptions.Exit(130) from None
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as error:
            called = error.ctx.command_path if error.ctx is not None else "premoe"
            raise CommandError(
                f"{error.format_message().rstrip('.')}. See `{called} --help`.", error.exit_code
            ) from error
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            known = from_exception(error)
            if known is None:
                raise
            raise known from error


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(version("premoe"), "--version", message="premoe %(version)s")
def command() -> None:
    """Serve a mixture-of-experts model in a fraction of its memory.

    PreMoE measures which experts a task needs, recognises the task of each request, keeps only those experts on
    the device and swaps the others in. `premoe demo` shows all of it on a small model in about a minute.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """What the `premoe` script runs."""
    try:
        command.main(args=list(arguments) if arguments is not None else None, prog_name="premoe")
    except OSError as error:  # a help text that cannot be printed
        known = from_exception(error)
        if known is None:
            raise
        known.show()
        sys.exit(known.exit_code)
    finally:
        _drop_unwritten()


def _drop_unwritten() -> None:
    """What standard output refused once is not tried again at the interpreter's end, which would print a traceback."""
    try:
        sys.stdout.flush()
    except OSError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


__all__ = ["CommandError", "LazyGroup", "command", "main"]
