"""How well a checkpoint's tasks are told apart: by kind of wording and family of strangers, one rule beside another.

    python tools/recognition_study.py tests/fixtures/tiny-moe [--role held-out] [--stored eight] [--json FILE]

Sets are built and turns decided by the product's own code. Kinds and families of ``validation`` are for choosing a
rule, those of ``held-out`` for reporting it.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import json
from pathlib import Path

import click
import torch
from fixture_training.stock import Stock
from premoe_local.tasks import EXACT, STORED
from premoe_local.tasks.wordings import Role
from recognition.outcomes import measure
from recognition.rules import RULES, built
from recognition.signatures import Probes

CALIBRATION = 256
UNKNOWN_PROMPTS = 64
GROUPS = {"six": EXACT, "eight": STORED}


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.option("--role", type=click.Choice(["train", "validation", "held-out"]), default="validation", show_default=True)
@click.option("--stored", "groups", type=click.Choice(list(GROUPS)), multiple=True, default=list(GROUPS))
@click.option("--rule", "rules", type=click.Choice(list(RULES)), multiple=True, default=list(RULES))
@click.option("--count", default=32, show_default=True, help="Requests a task and kind, and a family.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Also write figures here.")
def main(
    folder: Path, role: Role, groups: tuple[str, ...], rules: tuple[str, ...], count: int, json_file: Path | None
) -> None:
    """Measure the checkpoint in FOLDER."""
    torch.set_num_threads(1)
    probes = Probes(Stock(folder))
    calibration = {task: probes.calibration(task, CALIBRATION) for task in STORED}
    talks = [*probes.talks(STORED, role, count), *probes.unknown(UNKNOWN_PROMPTS)]
    figures = []
    for group in groups:
        for name in rules:
            tasks = GROUPS[group]
            found = built({task: calibration[task] for task in tasks}, RULES[name])
            row = measure(found, RULES[name], talks, tasks)
            figures.append({"model": folder.name, "role": role, "stored": group, "rule": name, **row})
            cells = "  ".join(f"{key} {_cell(value)}" for key, value in row.items() if key != "families")
            click.echo(f"{group} {name:32} {cells}")
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _cell(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key} {each}" for key, each in value.items())
    return str(value)


if __name__ == "__main__":
    main()
