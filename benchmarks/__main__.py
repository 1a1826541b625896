"""Runs every benchmark, each in a process of its own: ``python -m benchmarks [NAME …] [--json DIR]``.

``python -m benchmarks NAME OPTIONS`` runs one with its own options, ``--json FILE.json`` among them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click

HERE = Path(__file__).parent
NAMES = sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith("_"))
APART = {"arrival", "cold_start", "data", "gpu", "mixture", "serving", "soak"}
"""What needs a GPU, vLLM, which has an environment of its own, servers, or half an hour: make has a verb for each."""


class Names(click.Command):
    """Of one benchmark, options that come after its name are its own, but for ``--json DIR``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = args[1:]
        folder = own[:1] == ["--json"] and len(own) == 2 and not own[1].endswith(".json")
        if own and args[0] in NAMES and own[0].startswith("-") and not folder:
            ctx.obj, args = own, args[:1]
        return super().parse_args(ctx, args)


@click.command(cls=Names, epilog=f"Benchmarks: {', '.join(NAMES)}.")
@click.argument("names", nargs=-1, type=click.Choice(NAMES))
@click.option("--json", "folder", type=click.Path(file_okay=False, path_type=Path), help="Write DIR/NAME.json each.")
@click.pass_obj
def main(options: list[str] | None, names: tuple[str, ...], folder: Path | None) -> None:
    """Run the benchmarks NAMES (default: all that make has no verb for): machine, settings, ratios."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    # Benchmarks of the operator start control planes and nodes with the harness of the cluster tests.
    harness = os.pathsep.join(str(HERE.parent / folder) for folder in ("tests", "tools"))
    environment = {**os.environ, "PYTHONPATH": harness}
    if options:
        # In this process' place, so that Ctrl-C is its own.
        os.execve(sys.executable, [sys.executable, str(HERE / f"{names[0]}.py"), *options], environment)
    failed = []
    for name in names or sorted({*NAMES} - APART):
        arguments = [] if folder is None else ["--json", str(folder / f"{name}.json")]
        if subprocess.run(
            [sys.executable, str(HERE / f"{name}.py"), *arguments], env=environment, check=False
        ).returncode:
            failed.append(name)
    if failed:
        raise click.ClickException(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
