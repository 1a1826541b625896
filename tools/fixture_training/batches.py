"""Training documents and the batches packed from them."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from premoe_local.tasks import OPEN, TRAINED, examples
from premoe_local.tasks.draw import Draw
from premoe_local.tasks.open_text import training_size
from premoe_local.tasks.wordings import PLAIN, Talk, Turn, applies, kinds, strangers, talks
from tokenizers import Tokenizer
from torch import Tensor

from fixture_training.chat import END

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
STRANGER_SHARE = 0.15
"""That of each family of strangers."""
STRANGER_PART = 10
"""One example of a family of strangers for so many of a task."""
PROMPT_WEIGHT = 0.15
PADDING = -1


@dataclass(frozen=True, slots=True)
class Document:
    """One talk as tokens, with the weight of each in the loss and the task of its turn."""

    ids: list[int]
    weights: list[float]
    tasks: list[str]


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed rows: inputs, targets and what belongs to each position."""

    inputs: Tensor
    targets: Tensor
    positions: Tensor
    documents: Tensor
    weights: Tensor
    labels: Tensor


def training_talks(count: int, seed: int, *, varied: bool) -> dict[str, list[Talk]]:
    """What each task is learnt from: ``count`` examples in the task's own wordings (open text gives all it has).

    ``varied`` adds as many in the kinds of wording for training, in random order, and the strangers of training, which
    count as tasks of their own.
    """
    if not varied:
        return {task: _plain(task, count, seed) for task in TRAINED}
    pools: dict[str, list[Talk]] = {}
    for task in (*TRAINED, *strangers("train")):
        known = task in TRAINED
        plain = _plain(task, count, seed) if known else talks(task, PLAIN, count // STRANGER_PART, seed)
        chosen = [kind for kind in kinds("train") if applies(task, kind)]
        each = len(plain) // len(chosen)
        more = [talk for kind in chosen for talk in talks(task, kind, each, seed, "train")]
        pools[task] = Draw("pool", task, seed).shuffled(plain + more)
    return pools


def _plain(task: str, count: int, seed: int) -> list[Talk]:
    pool = examples(task, "train", training_size(task) if task in OPEN else count, seed)
    return [Talk(task, PLAIN, (Turn("user", each.prompt, task),), each.answer) for each in pool]


def encode(pool: list[Talk], tokenizer: Tokenizer) -> list[Document]:
    """Documents in the chat format; where an excerpt was cut is no end worth learning, and strangers get no answer."""
    texts = [text for talk in pool for text in _texts(talk)]
    pieces = iter([piece.ids for piece in tokenizer.encode_batch(texts)])
    return [_document(talk, pieces) for talk in pool]


def _texts(talk: Talk) -> list[str]:
    """The parts of a talk, each after its role: turns, then the answer, if there is one."""
    parts = [(turn.role, turn.content) for turn in talk.turns]
    if talk.answer:
        parts.append(("assistant", talk.answer))
    return [text for role, content in parts for text in (f"<|{role}|>", content + END * (role == "assistant"))]


def _document(talk: Talk, pieces: Iterator[list[int]]) -> Document:
    document = Document([], [], [])
    parts = [(turn.role, turn.task or talk.task) for turn in talk.turns]
    if talk.answer:
        parts.append(("assistant", talk.task))
    for role, task in parts:
        mark, content = next(pieces), next(pieces)
        weight = 1.0 if role == "assistant" else PROMPT_WEIGHT
        document.ids.extend(mark + content)
        document.weights.extend([PROMPT_WEIGHT] * len(mark) + [weight] * len(content))
        document.tasks.extend([task] * (len(mark) + len(content)))
    document.weights[0] = 0.0
    if talk.task in OPEN:
        document.weights[-1] = 0.0
    return document


class Packer:
    """Packs documents of mixed tasks into rows; a step's batch depends on the seed and the step alone."""

    def __init__(self, pools: dict[str, list[Document]], rows: int, length: int, seed: int) -> None:
        self.pools, self.rows, self.length, self.seed = pools, rows, length, seed
        self.tasks = list(pools)
        self.label = {task: number for number, task in enumerate(self.tasks)}
        means = {task: sum(len(d.ids) for d in pool[:500]) / len(pool[:500]) for task, pool in pools.items()}
        shares = [TOKEN_SHARE.get(task, STRANGER_SHARE) / means[task] for task in self.tasks]
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
            task = self.tasks[self._drawn(draw)]
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
            labels += [self.label[each] for each in document.tasks]
            number += 1
        return ids[:wanted], positions[:wanted], documents[:wanted], weights[:wanted], labels[:wanted]

    def _drawn(self, draw: Draw) -> int:
        place = draw.below(2**31) / 2**31
        return next((i for i, upper in enumerate(self.ladder) if place < upper), len(self.ladder) - 1)
