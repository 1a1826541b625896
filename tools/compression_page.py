"""Writes the figures of docs/compress.md, measured by `premoe compress compare` on both fixture models, and its table.

python tools/compression_page.py --work FOLDER    measure (resumable in FOLDER), write figures, pictures and the page
python tools/compression_page.py --page-only      write the page's parts again from docs/compression/*.json

Everything outside of the page's marks is written by hand, and stays.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import json
import re
from pathlib import Path
from typing import Any

import click
from premoe_local.compress.compare_command import BUDGETS, measured
from premoe_local.compress.compare_picture import pictures
from premoe_local.compress.compare_report import facts, sections
from premoe_local.console import interrupt_on_sigterm, note
from premoe_local.evaluation.markdown import table
from premoe_local.evaluation.recipe import Recipe

from premoe_runtime.compress.compare.entrants import PEERS, why_not
from premoe_runtime.compress.registry import METHODS
from premoe_runtime.offline.calibration import PassedOver

ROOT = Path(__file__).parents[1]
PAGE, FIGURES = ROOT / "docs" / "compress.md", ROOT / "docs" / "compression"
FIXTURES = {"tiny-moe": "label-informed", "tiny-moe-natural": "natural"}
SEEDS, DOCUMENTS, PROMPTS = 2, 20, 24
TRAINED = {
    "slim": "slim:stages=1,steps=40,tokens=1024,rate=0.004",
    "mc-suite": "mc-suite:rounds=2,budget_tokens=4000",
    "light-peft": "light-peft:steps=40,early=10,tokens=1024",
}
"""What of methods that train is affordable here, cell by cell; others run as they are."""
Document = dict[str, Any]


def asked(names: tuple[str, ...]) -> tuple[str, ...]:
    """Methods as ``premoe compress compare`` takes them, those that train last: what is known first is shown first."""
    usual = [name for name, one in METHODS.items() if name not in PEERS and not why_not(one)]
    return names or (*(name for name in usual if name not in TRAINED), *(TRAINED[n] for n in usual if n in TRAINED))


def measure(
    name: str,
    work: Path,
    threads: int | None,
    *,
    methods: tuple[str, ...] = (),
    budgets: str = BUDGETS,
    seeds: int = SEEDS,
    documents: int = DOCUMENTS,
    prompts: int = PROMPTS,
) -> None:
    """Measure one fixture, or take up what ``work`` holds of it, and write its figures and picture."""
    model = ROOT / "tests" / "fixtures" / name
    recipe = Recipe(model=(str(model),), seeds=seeds, documents=documents, prompts=prompts)
    unused = PassedOver()
    document = measured(
        str(model), asked(methods), budgets.split(","), recipe.data(unused), work, unused=unused, threads=threads
    )
    FIGURES.mkdir(exist_ok=True)
    for picture, image in pictures(document).items():
        (FIGURES / f"{name}-{picture}").write_bytes(image)
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in document.items())
    (FIGURES / f"{name}.json").write_text(f"{{{lines}}}\n", encoding="utf-8")


def page(text: str, documents: dict[str, Document]) -> str:
    """The page with its parts made anew."""
    return marked(marked(text, "methods", methods()), "figures", figures(documents))


def methods() -> str:
    """The registry as a table; a name leads to its section."""
    columns = ("method", "what it does", "changes", "needs", "cost", "loads in", "source")
    rows = [
        (
            f"[`{one.name}`](#{one.name})",
            one.title,
            ", ".join(one.changes),
            ", ".join(one.needs) or "–",
            one.cost,
            one.loads,
            one.source,
        )
        for one in METHODS.values()
    ]
    return table(columns, rows)


def figures(documents: dict[str, Document]) -> str:
    parts = []
    for name, document in documents.items():
        picture = FIGURES / f"{name}-compression.png"
        shown = [f"compression/{picture.name}"] if picture.exists() else []
        parts += [f"### {name} ({FIXTURES[name]})", facts(document), sections(document, shown, "####")]
    return "\n\n".join(parts) or "Not measured yet."


def marked(text: str, name: str, made: str) -> str:
    """``text`` with what stands between the marks of ``name`` replaced."""
    begin, end = f"<!-- {name}: python tools/compression_page.py -->", f"<!-- end of {name} -->"
    found, count = re.subn(
        f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}\n\n{made}\n\n{end}", text, flags=re.S
    )
    if count != 1:
        raise click.ClickException(f"{PAGE.name} has the marks of {name} {count} times")
    return found


def known() -> dict[str, Document]:
    """The figures that there are, by fixture."""
    places = {name: FIGURES / f"{name}.json" for name in FIXTURES}
    return {name: json.loads(place.read_text(encoding="utf-8")) for name, place in places.items() if place.exists()}


@click.command()
@click.option("--work", type=click.Path(path_type=Path), help="Folder of what was measured so far.")
@click.option("--only", type=click.Choice(list(FIXTURES)), help="Measure this fixture, and take the other's figures.")
@click.option("--method", "methods", multiple=True, help="Repeatable.  [default: all, with little training]")
@click.option("--budgets", default=BUDGETS, show_default=True, help="Shares of the experts' bytes.")
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--seeds", type=click.IntRange(min=1), default=SEEDS, show_default=True, help="Calibration texts.")
@click.option("--documents", type=click.IntRange(min=20), default=DOCUMENTS, show_default=True, help="Of each text.")
@click.option("--prompts", type=click.IntRange(min=1), default=PROMPTS, show_default=True, help="Asked of a task.")
@click.option("--page-only", is_flag=True, help="Measure nothing.")
def main(
    work: Path | None,
    only: str | None,
    methods: tuple[str, ...],
    budgets: str,
    threads: int,
    seeds: int,
    documents: int,
    prompts: int,
    page_only: bool,
) -> None:
    """Measure both fixtures and write the parts of docs/compress.md."""
    if not page_only and work is None:
        raise click.UsageError("name a folder with --work, or take --page-only")
    interrupt_on_sigterm()
    for name in [only] if only else FIXTURES:
        if work is not None and not page_only:
            folder = work.resolve() / name
            folder.mkdir(parents=True, exist_ok=True)
            note(f"measuring {name}")
            sizes = {"seeds": seeds, "documents": documents, "prompts": prompts}
            measure(name, folder, threads, methods=methods, budgets=budgets, **sizes)
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), known()), encoding="utf-8")


if __name__ == "__main__":
    main()
