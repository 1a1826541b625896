"""Writes docs/evaluation.md: what both fixture models keep, measured by `premoe eval sweep` as users run it.

python tools/evaluation_page.py --work FOLDER    measure (resumable in FOLDER) and write page, pictures and figures
python tools/evaluation_page.py --page-only      write the page again from docs/evaluation/*.json
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import click
from premoe_local.evaluation.command import measured
from premoe_local.evaluation.markdown import estimate, facts, sections, table
from premoe_local.evaluation.recipe import Recipe

from premoe_runtime.offline.evaluation.data import PROMPTS
from premoe_runtime.offline.evaluation.plan import SCORES

ROOT = Path(__file__).parents[1]
PAGE, FIGURES = ROOT / "docs" / "evaluation.md", ROOT / "docs" / "evaluation"
FIXTURES = {"tiny-moe": "label-informed", "tiny-moe-natural": "natural"}
GOALS = {"tiny-moe": {50.0: 99.5, 25.0: 99.0, 12.5: 96.0}, "tiny-moe-natural": {50.0: 99.0, 25.0: 92.0, 12.5: 68.0}}
"""Per cent of full accuracy that the right specialists are to keep, by per cent of experts kept."""
LEAD = 65.0
"""Points at a quarter of the experts that the retrieved specialist is to lead by."""
Document = dict[str, Any]

WHY = """

The best static set is ranked by the score of the specialists themselves, pooled and shared over layers, and has the
bytes of spare slots and probe on top: a stronger set than any that was published. The second lead is over those.
"""
HEAD = """# Evaluation

Made by `python tools/evaluation_page.py --work FOLDER`: `premoe eval sweep` on the two fixture models, whose experts
specialise with help of the task labels (`tiny-moe`) and without (`tiny-moe-natural`), with the demo's tasks. Test
prompts are worded as calibration never is. The figures as JSON: {links}.

`premoe eval sweep MODEL --out FOLDER --data TASK=FILE` does the same with a model and data of yours, and
[recipes](../examples/evaluation/README.md) do it with models that people have. For every calibration seed each task is
profiled once; its test prompts are then answered by the specialists of every score, budget and split, by one set for
all tasks (*static*: as many more experts a layer as the worker has spare slots, plus what a prober of its own weighs,
so that bytes are equal), by the experts that recognition gives (*retrieved*), and by those of other tasks. Exact match
is greedy decoding, by one teacher-forced forward pass; KL is that of full to pruned, at the places where the answer is
predicted. *Own split*: the task's best experts of all layers together. *As served*: within the slots of one worker for
all tasks. *Uniform*: equally many a layer.

The same command again goes on from the last cell that was finished; a wider choice of scores or budgets measures only
what is new.

## Goals

"""


def measure(name: str, work: Path, threads: int, **options: Any) -> None:
    """Measure one fixture, or take up what ``work`` holds of it, and write its figures and pictures."""
    recipe = Recipe.read(None, {"model": f"tests/fixtures/{name}", **options})
    document, pictures = measured(recipe, work / name, threads, quick=False)
    FIGURES.mkdir(exist_ok=True)
    for picture, image in pictures.items():
        (FIGURES / f"{name}-{picture}").write_bytes(image)
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in document.items())
    (FIGURES / f"{name}.json").write_text(f"{{{lines}}}\n", encoding="utf-8")


def page(documents: dict[str, Document]) -> str:
    links = ", ".join(f"[{name}](evaluation/{name}.json)" for name in documents)
    parts = [HEAD.format(links=links) + goals(documents)]
    for name, document in documents.items():
        shown = [f"evaluation/{path.name}" for path in _pictures(name)]
        compared = f"Scores compared: {', '.join(document['recipe']['scores'])}."
        parts += [f"## {name} ({FIXTURES[name]})", facts(document), compared, sections(document, shown, "###")]
    return "\n\n".join(parts) + "\n"


def _pictures(name: str) -> list[Path]:
    places = (FIGURES / f"{name}-{picture}" for picture in ("retained.png", "matrix.png"))
    return [place for place in places if place.exists()]


def goals(documents: dict[str, Document]) -> str:
    """Every goal beside what was measured; a missed one with the tasks that miss it."""
    rows = [row for name, document in documents.items() for row in _goals(name, document)]
    rows += [(name, "all", "not measured yet", "", "") for name in FIXTURES if name not in documents]
    return (
        table(
            (
                "model",
                "goal",
                "measured",
                "",
                "what misses it: retained % (% of the task's impact that its experts hold)",
            ),
            rows,
        )
        + WHY.rstrip()
    )


def _goals(name: str, document: Document) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for way, title in (("own", "right specialist, own split"), ("served", "right specialist, as served")):
        for row in document["kept"]:
            goal = GOALS[name].get(row["percent"])
            if goal is not None and (row["way"], row["score"], row["allocation"]) == (way, "impact", "shared"):
                words = f"{title}: ≥ {goal:g} % retained at {row['percent']:g} %"
                rows.append((name, words, *_met(row["retained"], goal), _worst(row, goal)))
    quarter = (one for one in document["contest"] if one["percent"] == 25)
    for one in quarter:
        for lead, among in zip(
            one["leads"], ("static set of equal bytes", "of those that others' scores rank"), strict=True
        ):
            met = _met(lead["points"], LEAD)
            best = next(each for each in one["entrants"] if each["name"] == lead["over"])
            why = f"{lead['over']} keeps {estimate(best['retained'])} %" if met[1].startswith("missed") else ""
            rows.append((name, f"≥ {LEAD:g} points over the best {among} at 25 %", *met, why))
    return rows


def _met(found: list[float], goal: float) -> tuple[str, str]:
    missed = goal - found[0]
    words = "met" if missed <= 0 else f"missed by {missed:.1f}" + " (within the interval)" * (found[2] >= goal)
    return estimate(found), words


def _worst(row: Document, goal: float) -> str:
    """Where a mean misses its goal: the tasks that keep less, and how much of their impact their experts hold."""
    if row["retained"][0] >= goal:
        return ""
    kept = {task: each["retained"][0] for task, each in row["tasks"].items() if "retained" in each}
    low = sorted((task for task in kept if kept[task] < goal), key=lambda task: kept[task])
    named = ", ".join(f"`{task}` {kept[task]:.1f} ({row['held'][task]:g})" for task in low)
    others = [row["held"][task] for task in kept if task not in low]
    return named + (f"; others ({fmean(others):.0f})" if others else "")


def known() -> dict[str, Document]:
    """The figures that there are, by fixture."""
    places = {name: FIGURES / f"{name}.json" for name in FIXTURES}
    return {name: json.loads(place.read_text(encoding="utf-8")) for name, place in places.items() if place.exists()}


@click.command()
@click.option("--work", type=click.Path(path_type=Path), help="Folder of what was measured so far.")
@click.option("--only", type=click.Choice(list(FIXTURES)), help="Measure this fixture, and take the other's figures.")
@click.option("--threads", default=2, show_default=True)
@click.option("--prompts", default=PROMPTS, show_default=True, help="Test prompts of a task.")
@click.option("--score", "scores", multiple=True, default=SCORES, show_default=True, help="Scores that are compared.")
@click.option("--page-only", is_flag=True, help="Measure nothing; write the page from docs/evaluation/*.json.")
def main(
    work: Path | None, only: str | None, threads: int, prompts: int, scores: tuple[str, ...], page_only: bool
) -> None:
    """Measure both fixtures and write docs/evaluation.md."""
    if not page_only and work is None:
        raise click.UsageError("name a folder with --work, or take --page-only")
    for name in [only] if only else FIXTURES:
        if work is not None and not page_only:
            work.mkdir(parents=True, exist_ok=True)
            measure(name, work, threads, prompts=prompts, scores=scores)
    PAGE.write_text(page(known()), encoding="utf-8")


if __name__ == "__main__":
    main()
