"""Measure an exported fixture through the stock transformers class, and write its card from the figures."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch
from fixture_training.accuracy import Share, agreement, matches, perplexity
from fixture_training.card import card
from fixture_training.export import TRAINING
from fixture_training.pruning import score
from fixture_training.recognition import (
    Setting,
    collect,
    first_layer,
    flat,
    recognise,
    router_signatures,
    token_signatures,
)
from fixture_training.retention import Documents, Retention
from fixture_training.stock import Stock
from premoe_local.tasks import EXACT, OPEN, STORED, examples
from rich.console import Console
from rich.progress import Progress

CALIBRATION = 128
OPEN_PROMPTS = 256
RECOGNITION_PROMPTS = 256
SETTINGS = (Setting(), Setting(exemplars=256, validation=256), Setting(exemplars=256, validation=256, quantile=0.97))
KEPT = (2, 4, 8)
"""The experts are divided by these."""


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


@dataclass(frozen=True, slots=True)
class Sizes:
    """Test prompts a task for the whole model, for pruned ones, and for wrong specialists (a pair of tasks)."""

    full: int
    pruned: int
    wrong: int


def measure(stock: Stock, sizes: Sizes, advance: Callable[[str], None]) -> dict[str, Any]:
    """All figures of a checkpoint."""
    test = documents(stock, sizes.full)
    measured = measure_accuracy(stock, test, sample=48)
    advance("accuracy")
    calibration = {task: [stock.encode(e) for e in examples(task, "calibration", CALIBRATION)] for task in STORED}
    scores = {task: score(stock, pool) for task, pool in calibration.items()}
    advance("scores")
    fewer = {task: pool[: sizes.pruned] for task, pool in test.items()}
    full = {task: 100 * sum(matches(stock, fewer[task])) / len(fewer[task]) for task in EXACT}
    retention = Retention(stock, fewer, full, scores, sizes.wrong, advance)
    measured["full_on_pruned_prompts"] = {task: round(value, 2) for task, value in full.items()}
    measured["calibration_documents"] = CALIBRATION
    measured["wrong_prompts"] = sizes.wrong
    measured["retention"] = [asdict(row) for part in KEPT for row in retention.rows(stock.experts // part)]
    measured["recognition"] = list(measure_recognition(stock, RECOGNITION_PROMPTS))
    advance("recognition")
    return measured


def measure_with_progress(folder: Path, sizes: Sizes) -> dict[str, Any]:
    """The same, with a progress bar."""
    stock = Stock(folder)
    with Progress(console=Console()) as progress:
        bar = progress.add_task("measuring", total=3 + 8 * len(KEPT))
        return measure(stock, sizes, lambda what: progress.update(bar, advance=1, description=what))


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.option("--prompts", default=512, show_default=True, help="Test prompts a task.")
@click.option("--pruned-prompts", default=256, show_default=True, help="Of these, those that pruned models answer.")
@click.option("--wrong-prompts", default=48, show_default=True, help="Test prompts a pair of tasks.")
@click.option("--threads", default=1, show_default=True)
@click.option("--note", default="", help="What a reader of the card should know about the training.")
@click.option("--card-only", is_flag=True, help="Write the card again from measured.json.")
@click.option("--name", default="", help="Name on the card; the folder's by default.")
def main(
    folder: Path,
    prompts: int,
    pruned_prompts: int,
    wrong_prompts: int,
    threads: int,
    note: str,
    card_only: bool,
    name: str,
) -> None:
    """Measure the checkpoint in FOLDER; write measured.json and README.md into it."""
    torch.set_num_threads(threads)
    figures = folder / "measured.json"
    before: dict[str, Any] = json.loads(figures.read_text(encoding="utf-8")) if figures.exists() else {}
    sizes = Sizes(prompts, pruned_prompts, wrong_prompts)
    measured = before if card_only else measure_with_progress(folder, sizes)
    measured["note"] = note or before.get("note", "")
    training = json.loads((folder / TRAINING).read_text(encoding="utf-8"))
    figures.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card(name or folder.name, measured, training), encoding="utf-8")


if __name__ == "__main__":
    main()
