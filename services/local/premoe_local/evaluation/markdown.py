"""Figures of an evaluation as Markdown tables. Pure; takes the document that `premoe eval sweep` writes as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Document = dict[str, Any]
_WAYS = {
    "own": "own split",
    "served": "as served",
    "static": "one set for all tasks",
}


def report(document: Document, name: str, pictures: Sequence[str] = ()) -> str:
    """The whole page; ``pictures``: names of the files beside it."""
    parts = [f"# What {name} keeps", facts(document), sections(document, pictures)]
    return "\n\n".join(parts) + "\n"


def facts(document: Document) -> str:
    """The model, and how figures are to be read."""
    model, interval = document["model"], document["interval"]
    several = len(model["models"]) > 1
    title = f"{len(model['models'])} training seeds, models" if several else "Model"
    who = ", ".join(f"`{one['model_id'][:16]}` (weights `{one['weights_id'][:16]}`)" for one in model["models"])
    return (
        f"{title} {who}: {model['family']}, "
        f"{model['layers']} MoE layers of {model['experts']} experts, {model['top_k']} a token. "
        f"{document['seeds']} calibration seeds{' each' * several}. In brackets: {100 * interval['level']:.0f} % "
        f"intervals over {'training seeds × ' * several}calibration seeds × test prompts (pigeonhole bootstrap, "
        f"{interval['resamples']} resamples; where no prompt differs they have no width, and up to 3/n may still go "
        "wrong). *Retained*: right answers over those of the full model, mean over the tasks "
        f"{', '.join(document['counted']) or '(none)'}, which {'every' if several else 'the'} full model answers."
    )


def sections(document: Document, pictures: Sequence[str] = (), level: str = "##") -> str:
    parts = [
        (f"{level} Full model", full_table(document)),
        (f"{level} Right specialists, by score and split", kept_table(document)),
        (f"{level} Task by task", task_table(document)),
        (f"{level} Contest at equal bytes", contest_table(document)),
        (f"{level} Recognised as", recognition_table(document)),
    ]
    if document["matrix"]:
        parts.append((f"{level} Across tasks", matrix_tables(document)))
    shown = "\n\n".join(f"![]({name})" for name in pictures)
    return "\n\n".join([*(f"{title}\n\n{text}" for title, text in parts), *([shown] if shown else [])])


FULL = ("task", "prompts", "exact match, %", "model by model", "perplexity of the given answers")


def full_rows(document: Document) -> list[tuple[str, int, str, str, str]]:
    """What the full model gives, a row a task, under ``FULL``."""
    return [
        (
            task,
            each["prompts"],
            estimate(each["accuracy"]),
            ", ".join(f"{one:.1f}" for one in each["models"]),
            estimate(each["perplexity"], 2),
        )
        for task, each in document["full"].items()
    ]


def full_table(document: Document) -> str:
    return table(FULL, [(f"`{task}`", *rest) for task, *rest in full_rows(document)])


def kept_table(document: Document) -> str:
    """Retained accuracy by budget and score; a column a split."""
    columns = (("own", "shared"), ("served", "shared"), ("own", "uniform"))
    cells: dict[tuple[float, str, str], dict[tuple[str, str], str]] = {}
    for row in document["kept"]:
        if row["way"] != "static" and row["retained"]:
            line = cells.setdefault((row["percent"], row["budget"], row["score"]), {})
            line[row["way"], row["allocation"]] = estimate(row["retained"])
    rows = [
        (f"{percent:g}", budget, score, *(line.get(column, "") for column in columns))
        for (percent, budget, score), line in cells.items()
    ]
    return table(("kept %", "budget", "ranked by", "own split", "as served", "uniform"), rows)


def task_table(document: Document) -> str:
    """Accuracy, perplexity and KL of what a worker serves, and of every score's best-known split."""
    tasks = list(document["full"])
    rows = []
    for row in document["kept"]:
        if row["way"] == "served" or (row["way"], row["allocation"]) == ("own", "uniform"):
            how = _WAYS[row["way"]] if row["way"] == "served" else "uniform"
            for title, key, digits in (
                ("exact match %", "accuracy", 1),
                ("perplexity", "perplexity", 2),
                ("KL", "kl", 3),
            ):
                values = [f"{row['tasks'][task][key][0]:.{digits}f}" for task in tasks]
                rows.append((f"{row['percent']:g}", f"{row['score']}, {how}", title, *values))
    return table(("kept %", "experts", "what", *(f"`{task}`" for task in tasks)), rows)


def contest_table(document: Document) -> str:
    parts = []
    by_seed = "seed by seed" if len(document["model"]["models"]) == 1 else "seed by seed; model by model"
    for one in document["contest"]:
        rows = [
            (
                f"**{entrant['name']}**" if place == 0 else entrant["name"],
                estimate(entrant["retained"]) if entrant["retained"] else "–",
                "; ".join(", ".join(f"{seed:.1f}" for seed in model) for model in entrant["seeds"]),
                estimate(entrant["behind"]) if entrant["behind"] else "–",
                estimate(entrant["kl"], 3),
            )
            for place, entrant in enumerate(one["entrants"])
        ]
        named = [
            f"**{estimate(lead['points'])} points** over the best {among}, *{lead['over']}*"
            for lead, among in zip(one["leads"], ("of them", "that others' scores rank"), strict=False)
        ]
        ahead = f": {'; '.join(named)}" if named else ""
        parts.append(
            f"{one['percent']:g} % ({one['budget']}; static sets keep {one['static_experts']} a layer, in the bytes of "
            f"spare slots and probe){ahead}.\n\n"
            + table(("experts", "retained %", by_seed, "points behind", "KL to the full model, all tasks"), rows)
        )
    return "\n\n".join(parts)


def recognition_table(document: Document) -> str:
    rows = [
        (f"`{task}`", f"{each['own']:.1f}", f"{each['generalist']:.1f}", f"{each['other']:.1f}")
        for task, each in document["recognition"].items()
    ]
    return table(("prompts of", "own task %", "unknown, so the generalist %", "another task %"), rows)


def matrix_tables(document: Document) -> str:
    matrix = document["matrix"]
    where = f"At {matrix['percent']:g} % ({matrix['budget']}), as served, retained % of the task in the column"
    return "\n\n".join(
        (
            f"{where}, with the experts of the task in the row alone:",
            _grid(matrix["tasks"], matrix["retained"], 1),
            "The same with every expert but those (what a task loses without another's):",
            _grid(matrix["tasks"], matrix["without"], 1),
            "KL to the full model, nats a token, with the experts of the row alone:",
            _grid(matrix["tasks"], matrix["kl"], 3),
        )
    )


def _grid(tasks: Sequence[str], values: Sequence[Sequence[list[float] | None]], digits: int) -> str:
    rows = [
        (f"`{task}`", *("–" if one is None else f"{one[0]:.{digits}f}" for one in line))
        for task, line in zip(tasks, values, strict=True)
    ]
    return table(("experts of", *(f"`{task}`" for task in tasks)), rows)


def estimate(found: Sequence[float], digits: int = 1) -> str:
    """``97.6 [96.9, 98.2]``."""
    value, low, high = (f"{each:.{digits}f}" for each in found)
    return f"{value} [{low}, {high}]"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return "\n".join([*head, *(f"| {' | '.join(map(str, row))} |" for row in rows)])
