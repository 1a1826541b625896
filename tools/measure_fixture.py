"""Measure an exported fixture through the stock transformers class, and write its card from the figures."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch
from fixture_training.accuracy import Share, agreement, matches, perplexity
from fixture_training.card import card
from fixture_training.export import TRAINING
from fixture_training.recognition import (
    Setting,
    collect,
    decider,
    first_layer,
    flat,
    recognise,
    router_signatures,
    token_signatures,
)
from fixture_training.retention import Sizes, loaded, measure_retention, steps
from fixture_training.stock import Encoded, Stock
from fixture_training.worded import measure_strangers, measure_worded
from premoe_local.tasks import EXACT, OPEN, STORED, examples
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

OPEN_PROMPTS = 256
RECOGNITION_PROMPTS = 256
WORDED_TALKS = 32
"""Talks a task and kind of wording; families of strangers have twice as many."""
SETTINGS = (Setting(), Setting(exemplars=256, validation=256), Setting(exemplars=256, validation=256, quantile=0.97))
Documents = dict[str, list[Encoded]]


def documents(stock: Stock, prompts: int) -> Documents:
    """The test documents of every stored task."""
    sizes = {task: OPEN_PROMPTS if task in OPEN else prompts for task in STORED}
    return {task: [stock.encode(e) for e in examples(task, "test", size)] for task, size in sizes.items()}


def measure_accuracy(stock: Stock, test: Documents, sample: int) -> dict[str, Any]:
    """The full model's figures."""
    exact = {task: Share.of(sum(matches(stock, test[task])), len(test[task])) for task in EXACT}
    stored = {task: {"value": round(perplexity(stock, test[task]), 3), "n": len(test[task])} for task in OPEN}
    compared = [agreement(stock, examples(task, "test", sample)) for task in EXACT]
    return {
        "parameters": sum(p.numel() for p in stock.model.parameters()),
        "exact": {task: asdict(share) for task, share in exact.items()},
        "perplexity": stored,
        "generate_agreement": {"agreed": sum(a for a, _ in compared), "n": sum(n for _, n in compared)},
    }


def measure_recognition(stock: Stock, prompts: int) -> Iterator[dict[str, Any]]:
    """Rows of the recognition table."""
    router = collect(lambda pool: router_signatures(stock, pool), STORED, prompts)
    kinds = {
        "layer 0": router.convert(first_layer),
        "all layers": router.convert(flat),
        "bag of tokens (no model)": collect(lambda pool: flat(token_signatures(stock, pool)), STORED, prompts),
    }
    for label, stored in (("six exact", EXACT), ("all eight", STORED)):
        for setting in SETTINGS:
            for kind, signatures in kinds.items():
                result = recognise(signatures, stored, setting)
                yield {
                    "stored": label,
                    "signature": kind,
                    "setting": asdict(setting),
                    **{key: {t: asdict(s) for t, s in value.items()} for key, value in result.items()},
                }


def measure_wordings(stock: Stock) -> dict[str, Any]:
    """Answers and recognition in other wordings, and abstention on strangers, with all eight tasks stored."""
    setting = SETTINGS[1]
    known = collect(lambda pool: flat(router_signatures(stock, pool)), STORED, 1)
    decide = decider(known, STORED, setting)
    return {
        "wordings": {
            "setting": asdict(setting),
            "talks": WORDED_TALKS,
            "kinds": list(measure_worded(stock, decide, flat, WORDED_TALKS)),
            "strangers": list(measure_strangers(stock, decide, flat, 2 * WORDED_TALKS)),
        }
    }


def measure(
    folder: Path, prompts: int, sizes: Sizes, memory: Path | None, advance: Callable[[str], None]
) -> dict[str, Any]:
    """All figures of a checkpoint."""
    stock = Stock(folder)
    advance("accuracy")
    test = documents(stock, prompts)
    measured = measure_accuracy(stock, test, sample=48)
    with loaded(folder) as model:
        measured |= measure_retention(model, sizes, memory, advance)
    advance("recognition")
    measured["recognition"] = list(measure_recognition(stock, RECOGNITION_PROMPTS))
    advance("other wordings")
    return measured | measure_wordings(stock)


def measure_with_progress(folder: Path, prompts: int, sizes: Sizes, memory: Path | None) -> dict[str, Any]:
    """The same, with a progress bar; where there is no terminal, a line a row."""
    console = Console()
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console) as progress:
        bar = progress.add_task("measuring", total=3 + steps())

        def advance(what: str) -> None:
            progress.update(bar, advance=1, description=what)
            if not console.is_terminal:
                print(what, flush=True)

        return measure(folder, prompts, sizes, memory, advance)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.option("--prompts", default=512, show_default=True, help="Test prompts a task.")
@click.option("--pruned-prompts", default=256, show_default=True, help="Of these, those that pruned models answer.")
@click.option("--wrong-prompts", default=48, show_default=True, help="Test prompts a pair of tasks.")
@click.option("--memory", type=click.Path(path_type=Path), help="File of answers counted so far, to go on from.")
@click.option("--threads", default=1, show_default=True)
@click.option("--note", default="", help="What a reader of the card should know about the training.")
@click.option("--wordings-only", is_flag=True, help="Measure other wordings alone; measured.json has the rest.")
@click.option("--card-only", is_flag=True, help="Write the card again from measured.json.")
@click.option("--name", default="", help="Name on the card; the folder's by default.")
def main(
    folder: Path,
    prompts: int,
    pruned_prompts: int,
    wrong_prompts: int,
    memory: Path | None,
    threads: int,
    note: str,
    wordings_only: bool,
    card_only: bool,
    name: str,
) -> None:
    """Measure the checkpoint in FOLDER; write measured.json and README.md into it."""
    torch.set_num_threads(threads)
    figures = folder / "measured.json"
    before: dict[str, Any] = json.loads(figures.read_text(encoding="utf-8")) if figures.exists() else {}
    sizes = Sizes(pruned_prompts, wrong_prompts)
    if (card_only or wordings_only) and "exact" not in before:
        raise click.ClickException(
            f"{figures} has no figures to add to; run this once without --wordings-only or --card-only"
        )
    if card_only:
        measured = before
    elif wordings_only:
        measured = before | measure_wordings(Stock(folder))
    else:
        measured = measure_with_progress(folder, prompts, sizes, memory)
    measured["note"] = note or before.get("note", "")
    training = json.loads((folder / TRAINING).read_text(encoding="utf-8"))
    figures.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card(name or folder.name, measured, training), encoding="utf-8")


if __name__ == "__main__":
    main()
