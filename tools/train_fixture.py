"""Train a tiny Qwen3-MoE on the generated tasks and export it as an ordinary Hugging Face folder.

Resumable: run the same command again and it goes on from the last checkpoint in the work folder.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from dataclasses import replace
from pathlib import Path

import click
import torch
from fixture_training.batches import Packer, encode, training_examples
from fixture_training.chat import train_tokenizer
from fixture_training.export import export
from fixture_training.trainer import RECIPES, Recipe, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer

TOKENIZER_SAMPLE = 2000


def prepare(recipe: Recipe, work: Path) -> tuple[Tokenizer, Packer]:
    """Generate the data, train the tokenizer, and tokenize."""
    pools = training_examples(recipe.pool, recipe.seed)
    saved = work / "tokenizer.json"
    if saved.exists():
        tokenizer = Tokenizer.from_file(str(saved))
    else:
        texts = (f"{e.prompt}\n{e.answer}" for pool in pools.values() for e in pool[:TOKENIZER_SAMPLE])
        tokenizer = train_tokenizer(texts, recipe.shape.vocabulary)
        tokenizer.save(str(saved))
    documents = {task: encode(pool, tokenizer) for task, pool in pools.items()}
    return tokenizer, Packer(documents, recipe.rows, recipe.length, recipe.seed)


def train(trainer: Trainer, console: Console, report_every: int) -> None:
    """Train with a progress bar; where there is no terminal, print a line now and then."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("training", total=trainer.recipe.steps, completed=trainer.step)

        def after_step(state: Trainer) -> None:
            recent = state.losses[-report_every:]
            mean = sum(recent) / len(recent)
            progress.update(bar, completed=state.step, description=f"training, loss {mean:.3f}")
            if not console.is_terminal and state.step % report_every == 0:
                print(f"step {state.step} of {state.recipe.steps}, loss {mean:.4f}, {state.seconds:.0f} s", flush=True)

        trainer.run(after_step)


@click.command()
@click.argument("name", type=click.Choice(list(RECIPES)))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write the checkpoint to.")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for resumable state.")
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", default=1, show_default=True, help="More than one gains nothing at this size.")
def main(name: str, out: Path, work: Path, seed: int, threads: int) -> None:
    """Train a tiny Qwen3-MoE by the recipe NAME and export it."""
    torch.set_num_threads(threads)
    console = Console()
    work.mkdir(parents=True, exist_ok=True)
    recipe = replace(RECIPES[name], seed=seed)
    with console.status("generating and tokenizing the tasks"):
        tokenizer, packer = prepare(recipe, work)
    trainer = Trainer(recipe, packer, work)
    if trainer.resume():
        console.print(f"resumed at step {trainer.step}")
    train(trainer, console, report_every=100)
    export(trainer, tokenizer, out)
    console.print(f"exported to {out.name}")


if __name__ == "__main__":
    main()
