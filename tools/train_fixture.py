"""Train a tiny Qwen3-MoE on the generated tasks and export it as an ordinary Hugging Face folder.

    python tools/train_fixture.py tiny-moe --start tests/fixtures/tiny-moe --work WORK --out OUT

goes on from the committed model for 800 steps on varied wordings (6 minutes of one free core); without `--start` the
recipe of the committed model runs from random weights (20 minutes, `tiny-moe-natural` 9). Deterministic by seed on one
machine. Resumable: run the same command again and it goes on from the last checkpoint in the work folder.
`tools/measure_fixture.py OUT` writes the card.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import click
import torch
from fixture_training.batches import Packer, encode, training_talks
from fixture_training.chat import train_tokenizer
from fixture_training.export import export
from fixture_training.trainer import RECIPES, Recipe, Trainer, further, shortened
from premoe_local.tasks import TRAINED
from premoe_local.tasks.wordings import PLAIN
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer
from transformers import Qwen3MoeForCausalLM

TOKENIZER_SAMPLE = 2000


def prepare(recipe: Recipe, work: Path, start: Path | None) -> tuple[Tokenizer, Packer]:
    """Generate the data, take or train the tokenizer (on the tasks' own wordings), and tokenize."""
    pools = training_talks(recipe.pool, recipe.seed, varied=recipe.varied)
    saved = (start or work) / "tokenizer.json"
    if saved.exists():
        tokenizer = Tokenizer.from_file(str(saved))
    else:
        plain = {task: [talk for talk in pools[task] if talk.kind == PLAIN][:TOKENIZER_SAMPLE] for task in TRAINED}
        texts = (f"{talk.turns[0].content}\n{talk.answer}" for pool in plain.values() for talk in pool)
        tokenizer = train_tokenizer(texts, recipe.shape.vocabulary)
        tokenizer.save(str(saved))
    documents = {task: encode(pool, tokenizer) for task, pool in pools.items()}
    return tokenizer, Packer(documents, recipe.rows, recipe.length, recipe.seed)


def going_on(recipe: Recipe, start: Path) -> tuple[Recipe, dict[str, torch.Tensor]]:
    """The recipe of training that goes on from an exported model, and that model's weights."""
    files = sorted(start.glob("*.safetensors"))
    digest = blake2b(b"".join(file.read_bytes() for file in files), digest_size=8).hexdigest()
    model = Qwen3MoeForCausalLM.from_pretrained(
        start, local_files_only=True, trust_remote_code=False, dtype=torch.float32
    )
    return further(recipe, digest), model.state_dict()


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
                left = state.seconds * (state.recipe.steps / state.step - 1) / 60
                print(
                    f"step {state.step} of {state.recipe.steps}, loss {mean:.4f}, {state.seconds:.0f} s, "
                    f"about {left:.0f} minutes left",
                    flush=True,
                )

        trainer.run(after_step)


@click.command()
@click.argument("name", type=click.Choice(list(RECIPES)))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write the checkpoint to.")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for resumable state.")
@click.option("--start", type=click.Path(path_type=Path, exists=True), help="Exported model to go on from.")
@click.option("--seed", default=0, show_default=True)
@click.option("--dirichlet", type=float, default=0.0, help="Shape routers to a Dirichlet of this concentration.")
@click.option("--shaping", default=1.0, show_default=True, help="Weight of that loss.")
@click.option(
    "--steps", type=click.IntRange(min=2), help="A short run: so many steps in the proportions of the recipe."
)
@click.option("--threads", default=1, show_default=True, help="More than one gains nothing at this size.")
def main(
    name: str,
    out: Path,
    work: Path,
    start: Path | None,
    seed: int,
    dirichlet: float,
    shaping: float,
    steps: int | None,
    threads: int,
) -> None:
    """Train a tiny Qwen3-MoE by the recipe NAME and export it."""
    torch.set_num_threads(threads)
    console = Console()
    work.mkdir(parents=True, exist_ok=True)
    recipe = replace(RECIPES[name], seed=seed, dirichlet=dirichlet, shaping=shaping)
    weights = None
    if start is not None:
        recipe, weights = going_on(recipe, start)
    if steps is not None:
        recipe = shortened(recipe, steps)
    with console.status("generating and tokenizing the tasks"):
        tokenizer, packer = prepare(recipe, work, start)
    trainer = Trainer(recipe, packer, work)
    try:
        resumed = trainer.resume()
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    if resumed:
        console.print(f"resumed at step {trainer.step}")
    elif weights is not None:
        trainer.begin(weights)
    train(trainer, console, report_every=25)
    export(trainer, tokenizer, out)
    console.print(f"exported to {out.name}")


if __name__ == "__main__":
    main()
