"""A comparison of methods as Markdown. Pure; takes the document that `premoe compress compare` writes as JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from premoe_local.console import human_bytes
from premoe_local.evaluation.markdown import estimate, table

Document = Mapping[str, Any]
COLUMNS = (
    "method",
    "bytes, %",
    "experts x neurons",
    "retained, %",
    "over random",
    "over select",
    "KL",
    "KL less random's",
    "KL less select's",
    "seconds",
    "memory",
)


def report(document: Document, pictures: Sequence[str] = ()) -> str:
    """The whole page; ``pictures``: names of the files beside it."""
    parts = ["# Methods of compression at equal bytes", facts(document), sections(document, pictures)]
    return "\n\n".join(parts) + "\n"


def facts(document: Document) -> str:
    """The model, and how figures are to be read."""
    model, interval = document["model"], document["interval"]
    prompts = sum(each["prompts"] for each in document["full"].values())
    return (
        f"Model `{model['model_id'][:16]}`: {model['family']}, {model['layers']} MoE layers of {model['experts']} "
        f"experts of {model['width']} neurons, {model['top_k']} a token, {human_bytes(model['experts_bytes'])} of "
        f"experts. {document['seeds']} calibration seeds, {prompts} test prompts of {len(document['full'])} tasks. In "
        f"brackets: {100 * interval['level']:.0f} % intervals over calibration seeds × test prompts (pigeonhole "
        f"bootstrap, {interval['resamples']} resamples). *Retained*: right answers over those of the full model, mean "
        f"over the tasks {', '.join(document['counted']) or '(none)'}. *KL*: full to compressed, nats a token, where "
        "answers are predicted, all tasks. *Over*, *less*: paired differences, in points and nats. *Seconds*: what the "
        "method and the writing of its pack take, mean over the seeds; retrieval's are those of its profiles. "
        "*Memory*: the most that a process which does nothing else takes beyond its imports (`ru_maxrss`), main memory "
        "only."
    )


def sections(document: Document, pictures: Sequence[str] = (), level: str = "##") -> str:
    parts = [f"![]({name})" for name in pictures]
    for one in document["budgets"]:
        title = f"{level} {one['percent']:g} % of the experts' bytes ({human_bytes(one['bytes'])})"
        parts += [title, table(COLUMNS, [(f"`{name}`", *map(_cell, rest)) for name, *rest in rows(one)])]
    parts += [retrieval_note(document), f"{level} Task by task", task_table(document)]
    return "\n\n".join([*filter(None, parts), *filter(None, ["\n".join(f"- {one}" for one in left_out(document))])])


def rows(budget: Document) -> list[tuple[str, ...]]:
    """A row a method, under ``COLUMNS``."""
    return [
        (one["name"], "–", one["refused"], *["–"] * (len(COLUMNS) - 3)) if "refused" in one else _row(one)
        for one in budget["entrants"]
    ]


def _row(one: Document) -> tuple[str, ...]:
    over = one["over"]
    size = f"{one['percent']:g}"
    if one["skeleton_bytes"] > 0:
        size += f" and {human_bytes(one['skeleton_bytes'])} elsewhere"
    return (
        one["name"],
        size,
        f"{_counts(one['experts'])} x {one['width']}",
        _estimate(one["retained"]),
        *(_estimate(over[peer] and over[peer]["retained"]) for peer in ("random", "select")),
        _estimate(one["kl"], 3),
        *(_estimate(over[peer] and over[peer]["kl"], 3) for peer in ("random", "select")),
        f"{one['seconds']:g}",
        "–" if one["memory"] is None else human_bytes(one["memory"]),
    )


def _counts(experts: Sequence[int]) -> str:
    return str(experts[0]) if len(set(experts)) == 1 else f"{min(experts)} to {max(experts)}"


def _estimate(found: Sequence[float] | None, digits: int = 1) -> str:
    # A difference that rounds to nothing has no sign.
    return re.sub(r"-(0\.0+)(?!\d)", r"\1", estimate(found, digits)) if found else "–"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def retrieval_note(document: Document) -> str:
    """What retrieval's bytes do not say."""
    named = [one for budget in document["budgets"] for one in budget["entrants"] if one["name"].startswith("retrieval")]
    if not named:
        return ""
    return (
        "Retrieval: each task's specialist (the score `impact`, shared over layers) in the slots of one worker for all "
        "tasks, spare ones counted; all experts lie in main memory or the object store beside it. A worker with its "
        f"engine in a process of its own also holds a prober, {human_bytes(document['model']['probe_bytes'])}, which "
        "is not counted."
    )


def task_table(document: Document) -> str:
    """Accuracy, perplexity and KL by task."""
    tasks = list(document["full"])
    kinds = (("exact match %", "accuracy", 1), ("perplexity", "perplexity", 2), ("KL", "kl", 3))
    found = [("100", "full model", document["full"])]
    for budget in document["budgets"]:
        found += [(f"{budget['percent']:g}", f"`{one['name']}`", one.get("tasks")) for one in budget["entrants"]]
    lines = [
        (percent, name, title, *(f"{each[task][key][0]:.{digits}f}" for task in tasks))
        for percent, name, each in found
        if each
        for title, key, digits in kinds
    ]
    return table(("bytes, %", "method", "what", *(f"`{task}`" for task in tasks)), lines)


def left_out(document: Document) -> list[str]:
    """Who did not take part, and why."""
    return [f"{one['method']} is left out: {one['why']}." for one in document["left_out"]]
