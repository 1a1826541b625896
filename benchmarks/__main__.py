"""Runs every benchmark, each in a process of its own: ``python -m benchmarks [NAME …] [--json DIR]``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click

HERE = Path(__file__).parent
NAMES = sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith("_"))
APART = {"arrival", "mixture", "serving"}
"""They need vLLM, which has an environment of its own: ``make bench-serve``, ``bench-mixture``, ``bench-arrival``."""


@click.command(epilog=f"Benchmarks: {', '.join(NAMES)}.")
@click.argument("names", nargs=-1, type=click.Choice(NAMES))
@click.option("--json", "folder", type=click.Path(file_okay=False, path_type=Path), help="Write DIR/NAME.json each.")
def main(names: tuple[str, ...], folder: Path | None) -> None:
    """Run the benchmarks NAMES (default: all that need no vLLM). Each prints the machine, its settings and ratios."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    # Benchmarks of the operator start control planes and nodes with the harness of the cluster tests.
    harness = os.pathsep.join(str(HERE.parent / folder) for folder in ("tests", "tools"))
    environment = {**os.environ, "PYTHONPATH": harness}
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
