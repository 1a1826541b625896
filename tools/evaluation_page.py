"""Writes docs/evaluation.md: what both fixture models keep, measured by `premoe eval sweep` as users run it.

python tools/evaluation_page.py --work FOLDER    train, measure (resumable in FOLDER) and write page, pictures, figures
python tools/evaluation_page.py --page-only      write the page again from docs/evaluation/*.json

The models of other training seeds are not committed: they are trained into FOLDER by the recipe of the committed ones.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import click
from fixture_training.export import TRAINING
from fixture_training.trainer import RECIPES
from premoe_local.evaluation.command import measured
from premoe_local.evaluation.markdown import estimate, facts, sections, table
from premoe_local.evaluation.recipe import SEEDS, Recipe
from premoe_local.tasks import EXACT

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

TRAINING_SEEDS = 3
"""Of which the goals are means: the committed model's and two more."""
PUBLISHED = ("reap", "easy-ep", "counts")
"""Static sets as others publish them: one score, equally many experts a layer. ``counts`` is frequency."""

WHY = """What the lead over the best static set is made of, at 25 % (retained %):

{table}

The best static set is ranked by the score of the specialists themselves (*impact*, pooled over tasks) and shared over
layers by it, which no published method does, and equal bytes give it about a third more experts than a specialist has:
those of a worker's spare slots and probe. Each of the two, and prompts that are not recognised, takes points off the
lead; what is left of it to the right specialists is below the goal even where recognition is perfect. Over sets as
they are published the lead is what the last columns show. *Without spare slots and probe*: as the fixture's card has
it, training seed 0, on more prompts."""
HEAD = """# Evaluation

Made by `python tools/evaluation_page.py --work FOLDER`: `premoe eval sweep` on the two fixture models, whose experts
specialise with help of the task labels (`tiny-moe`) and without (`tiny-moe-natural`), with the demo's tasks. Test
prompts are worded as calibration never is. The committed models have training seed 0; the command trains others by the
same recipe (`tools/train_fixture.py`), stops and goes on like the rest. The figures as JSON: {links}.

`premoe eval sweep MODEL... --out FOLDER --data TASK=FILE` does the same with models and data of yours, and
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


def trained(name: str, seed: int, work: Path) -> Path:
    """The fixture of a training seed: the committed one, or one that is trained under ``work`` if it is not there."""
    if seed == 0:
        return ROOT / "tests" / "fixtures" / name
    folder = work / f"seed-{seed}"
    model, wanted = folder / "model", replace(RECIPES[name], seed=seed).as_dict()
    facts = model / TRAINING
    if facts.exists() and json.loads(facts.read_text(encoding="utf-8"))["recipe"] == json.loads(json.dumps(wanted)):
        return model
    click.echo(f"training {name} with seed {seed}")
    command = [ROOT / "tools" / "train_fixture.py", name, "--seed", seed, "--work", folder / "training", "--out", model]
    if subprocess.run([sys.executable, *map(str, command)], check=False).returncode:
        raise click.ClickException(f"{name} with seed {seed} was not trained; see above, and run the same again")
    return model


def measure(name: str, work: Path, threads: int, training_seeds: int, **options: Any) -> None:
    """Measure one fixture, or take up what ``work`` holds of it, and write its figures and pictures."""
    models = [str(trained(name, seed, work)) for seed in range(training_seeds)]
    document, pictures = measured(Recipe.read(None, {"model": models, **options}), work, threads, quick=False)
    # Where the models lie is this machine's; the committed figures say whose they are by seed.
    document["recipe"]["model"] = [f"{name}, training seed {seed}" for seed in range(training_seeds)]
    FIGURES.mkdir(exist_ok=True)
    for picture, image in pictures.items():
        (FIGURES / f"{name}-{picture}").write_bytes(image)
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in document.items())
    (FIGURES / f"{name}.json").write_text(f"{{{lines}}}\n", encoding="utf-8")


def page(documents: dict[str, Document]) -> str:
    links = ", ".join(f"[{name}](evaluation/{name}.json)" for name in documents)
    parts = [HEAD.format(links=links) + goals(documents), remarks(documents)]
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
    return table(
        (
            "model",
            "goal",
            "measured",
            "",
            "what misses it: retained % (% of the task's impact that its experts hold)",
        ),
        rows,
    )


def remarks(documents: dict[str, Document]) -> str:
    """How far the goals' figures are theirs, and what the lead is made of."""
    breaks = [_breaks(name, document) for name, document in documents.items()]
    unlearnt = [_unlearnt(name, document) for name, document in documents.items()]
    return "\n\n".join(
        [*_few_seeds(documents), *filter(None, unlearnt), WHY.format(table=_why(documents)), *filter(None, breaks)]
    )


def _unlearnt(name: str, document: Document) -> str:
    """The exact tasks that a training seed did not learn, so that no mean has them."""
    out = [task for task in EXACT if task not in document["counted"]]
    shares = (f"`{task}` {', '.join(f'{one:g}' for one in document['full'][task]['models'])} %" for task in out)
    return (
        f"Of `{name}` not every training seed learnt every task within the recipe's steps: whole, the models answer "
        f"{'; '.join(shares)}. Such a task is in no mean of any seed."
    ) * bool(out)


def _breaks(name: str, document: Document) -> str:
    """The task that keeps least of its answers at an eighth of the experts, where it keeps less than half."""
    served = next(row for row in document["kept"] if _key(row) == ("served", "impact", "shared", 12.5))
    kept = {task: each["retained"][0] for task, each in served["tasks"].items() if "retained" in each}
    task = min(kept, key=lambda each: kept[each])
    if kept[task] >= 50:
        return ""
    return (
        f"What `{name}` loses first is `{task}`: as served at 12.5 % it keeps "
        f"{estimate(served['tasks'][task]['retained'])} % of its right answers and {served['held'][task]:g} % of its "
        "impact ([why](benchmarks.md#quality))."
    )


def _few_seeds(documents: dict[str, Document]) -> list[str]:
    counts = {name: len(document["model"]["models"]) for name, document in documents.items()}
    few = [f"`{name}` {count}" for name, count in counts.items() if count < TRAINING_SEEDS]
    if not few:
        return []
    return [
        f"Goals are of the mean of {TRAINING_SEEDS} training seeds. Measured so far: {', '.join(few)}. What is missing "
        "is trained and measured by the same command."
    ]


def _why(documents: dict[str, Document]) -> str:
    """What the lead at a quarter of the experts is made of."""
    rows = []
    for name, document in documents.items():
        right = next(row for row in document["kept"] if _key(row) == ("served", "impact", "shared", 25))
        one = next(one for one in document["contest"] if one["percent"] == 25)
        sets = {each["name"]: estimate(each["retained"]) for each in one["entrants"]}
        card = json.loads((ROOT / "tests" / "fixtures" / name / "measured.json").read_text(encoding="utf-8"))
        wanted = ("generalist", "impact", "shared", 25)
        keys = ("how", "metric", "allocation", "percent_kept")
        bare = next(row["retained"] for row in card["retention"] if tuple(row[key] for key in keys) == wanted)
        published = (sets[f"one set for all, {score}, uniform"] for score in PUBLISHED)
        ours = (sets["retrieved specialist"], sets["one set for all, impact, shared"])
        uniform = sets["one set for all, impact, uniform"]
        rows.append((name, estimate(right["retained"]), *ours, f"{bare:.1f}", uniform, *published))
    return table(
        (
            "model",
            "right specialist",
            "as recognised",
            "best static set",
            "it without spare slots and probe",
            "it with equally many a layer",
            "REAP",
            "EASY-EP",
            "frequency",
        ),
        rows,
    )


def _key(row: Document) -> tuple[str, str, str, float]:
    return row["way"], row["score"], row["allocation"], row["percent"]


def _goals(name: str, document: Document) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for way, title in (("own", "right specialist, own split"), ("served", "right specialist, as served")):
        for row in document["kept"]:
            goal = GOALS[name].get(row["percent"])
            if goal is not None and (row["way"], row["score"], row["allocation"]) == (way, "impact", "shared"):
                words = f"{title}: ≥ {goal:g} % retained at {row['percent']:g} %"
                rows.append((name, words, *_met(row["retained"], goal), _worst(row, goal)))
    for one in document["contest"]:
        if one["percent"] == 25:
            rows += _leads(name, one)
    return rows


def _leads(name: str, contest: Document) -> list[tuple[str, ...]]:
    statics = {each["name"]: each for each in contest["entrants"] if each["behind"]}
    published = [statics[f"one set for all, {score}, uniform"] for score in PUBLISHED]
    others = [each for each in statics.values() if ", impact," not in each["name"]]
    rows: list[tuple[str, ...]] = []
    for among, sets in (
        ("static set of equal bytes", list(statics.values())),
        ("of those that others' scores rank", others),
        ("of REAP, EASY-EP and frequency", published),
    ):
        best = max(sets, key=lambda each: each["retained"][0])
        met = _met(best["behind"], LEAD)
        why = f"{best['name']} keeps {estimate(best['retained'])} %" if met[1].startswith("missed") else ""
        rows.append((name, f"≥ {LEAD:g} points over the best {among} at 25 %", *met, why))
    return rows


def _met(found: list[float], goal: float) -> tuple[str, str]:
    missed = goal - found[0]
    by = f"{missed:.1f}" if missed >= 0.05 else f"{missed:.2f}"
    words = "met" if missed <= 0 else f"missed by {by}" + " (within the interval)" * (found[2] >= goal)
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
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
@click.option(
    "--training-seeds",
    type=click.IntRange(min=1),
    default=TRAINING_SEEDS,
    show_default=True,
    help="Models of a fixture.",
)
@click.option(
    "--seeds", type=click.IntRange(min=1), default=SEEDS, show_default=True, help="Calibration seeds of each model."
)
@click.option(
    "--prompts", type=click.IntRange(min=1), default=PROMPTS, show_default=True, help="Test prompts of a task."
)
@click.option("--score", "scores", multiple=True, default=SCORES, show_default=True, help="Scores that are compared.")
@click.option("--page-only", is_flag=True, help="Measure nothing; write the page from docs/evaluation/*.json.")
def main(
    work: Path | None,
    only: str | None,
    threads: int,
    training_seeds: int,
    seeds: int,
    prompts: int,
    scores: tuple[str, ...],
    page_only: bool,
) -> None:
    """Measure both fixtures and write docs/evaluation.md."""
    if not page_only and work is None:
        raise click.UsageError("name a folder with --work, or take --page-only")
    for name in [only] if only else FIXTURES:
        if work is not None and not page_only:
            folder = work.resolve() / name
            folder.mkdir(parents=True, exist_ok=True)
            measure(name, folder, threads, training_seeds, seeds=seeds, prompts=prompts, scores=scores)
    PAGE.write_text(page(known()), encoding="utf-8")


if __name__ == "__main__":
    main()
