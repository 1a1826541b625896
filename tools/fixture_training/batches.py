"""Training documents and the batches packed from them."""

from dataclasses import dataclass

import torch
from premoe_local.tasks import OPEN, TRAINED, Example, examples
from premoe_local.tasks.draw import Draw
from premoe_local.tasks.open_text import training_size
from tokenizers import Tokenizer
from torch import Tensor

from fixture_training.chat import end_token, render

TOKEN_SHARE = {
    "add": 1.4,
    "rev": 1.3,
    "json": 1.6,
    "roman": 0.9,
    "lang": 1.3,
    "kb": 2.2,
    "py": 1.3,
    "prose": 1.3,
    "sort": 0.7,
    "units": 0.4,
}
"""Relative share of each task in the tokens trained on."""
PROMPT_WEIGHT = 0.15
PADDING = -1


@dataclass(frozen=True, slots=True)
class Document:
    """One example as tokens, with the weight of each token in the loss."""

    ids: list[int]
    weights: list[float]


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed rows: inputs, targets and what belongs to each position."""

    inputs: Tensor
    targets: Tensor
    positions: Tensor
    documents: Tensor
    weights: Tensor
    labels: Tensor


def training_examples(count: int, seed: int) -> dict[str, list[Example]]:
    """The training pool of each task; open text gives all it has."""
    return {task: examples(task, "train", training_size(task) if task in OPEN else count, seed) for task in TRAINED}


def encode(pool: list[Example], tokenizer: Tokenizer) -> list[Document]:
    """Documents in the chat format; where an excerpt was cut is no end worth learning."""
    end = end_token(tokenizer)
    prompts = tokenizer.encode_batch([render(example.prompt) for example in pool])
    answers = tokenizer.encode_batch([example.answer for example in pool])
    documents = []
    for example, prompt, answer in zip(pool, prompts, answers, strict=True):
        weights = [0.0] + [PROMPT_WEIGHT] * (len(prompt.ids) - 1) + [1.0] * len(answer.ids)
        weights.append(0.0 if example.task in OPEN else 1.0)
        documents.append(Document([*prompt.ids, *answer.ids, end], weights))
    return documents


class Packer:
    """Packs documents of mixed tasks into rows; a step's batch depends on the seed and the step alone."""

    def __init__(self, pools: dict[str, list[Document]], rows: int, length: int, seed: int) -> None:
        self.pools, self.rows, self.length, self.seed = pools, rows, length, seed
        self.tasks = list(pools)
        means = {task: sum(len(d.ids) for d in pool[:500]) / len(pool[:500]) for task, pool in pools.items()}
        shares = [TOKEN_SHARE[task] / means[task] for task in self.tasks]
        total = sum(shares)
        self.ladder = [sum(shares[: i + 1]) / total for i in range(len(shares))]

    def batch(self, step: int) -> Batch:
        """The batch of one step."""
        draw = Draw("batch", self.seed, step)
        rows = [self._row(draw) for _ in range(self.rows)]
        ids, positions, documents, weights, labels = (torch.tensor([row[part] for row in rows]) for part in range(5))
        return Batch(
            ids[:, :-1], ids[:, 1:], positions[:, :-1], documents[:, :-1], weights[:, 1:].float(), labels[:, :-1]
        )

    def _row(self, draw: Draw) -> tuple[list[int], list[int], list[int], list[float], list[int]]:
        ids: list[int] = []
        positions: list[int] = []
        documents: list[int] = []
        weights: list[float] = []
        labels: list[int] = []
        wanted = self.length + 1
        number = 0
        while len(ids) < wanted:
            label = self._label(draw)
            task = self.tasks[label]
            document = draw.pick(self.pools[task])
            size = len(document.ids)
            if len(ids) + size > wanted and task not in OPEN and len(ids) > 0.75 * self.length:
                rest = wanted - len(ids)
                ids += [0] * rest
                positions += [0] * rest
                documents += [PADDING] * rest
                weights += [0.0] * rest
                labels += [labels[-1]] * rest
                break
            ids += document.ids
            positions += range(size)
            documents += [number] * size
            weights += document.weights
            labels += [label] * size
            number += 1
        return ids[:wanted], positions[:wanted], documents[:wanted], weights[:wanted], labels[:wanted]

    def _label(self, draw: Draw) -> int:
        place = draw.below(2**31) / 2**31
        return next((i for i, upper in enumerate(self.ladder) if place < upper), len(self.ladder) - 1)
