"""Which task a prompt belongs to, from router signatures; and when to say "none of them"."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from premoe_local.tasks import NEVER_TRAINED, TRAINED, Example, examples
from torch import Tensor
from torch.nn import functional as F

from fixture_training.accuracy import Share
from fixture_training.stock import Encoded, Stock, observed

EVERY_TASK = (*TRAINED, *NEVER_TRAINED)


@dataclass(frozen=True, slots=True)
class Setting:
    """How a recogniser is built."""

    exemplars: int = 64
    neighbours: int = 5
    validation: int = 128
    quantile: float = 0.985


@dataclass(frozen=True, slots=True)
class Signatures:
    """Signatures of the prompts of every task, by split."""

    calibration: dict[str, Tensor]
    validation: dict[str, Tensor]
    test: dict[str, Tensor]

    def convert(self, change: Callable[[Tensor], Tensor]) -> "Signatures":
        """The same prompts under another signature."""
        splits = (self.calibration, self.validation, self.test)
        return Signatures(*({task: change(x) for task, x in split.items()} for split in splits))


def router_signatures(stock: Stock, prompts: list[Example]) -> Tensor:
    """For each prompt and layer, the mean over its own tokens of the root of the router's probabilities."""
    return signatures_of(stock, [stock.encode(example) for example in prompts])


def signatures_of(stock: Stock, encoded: list[Encoded]) -> Tensor:
    """The same for the last turn of encoded documents; what comes before it is only seen through attention."""
    documents = [_prompt_only(each) for each in encoded]
    result = torch.zeros(len(documents), stock.layers, stock.experts)
    with observed(stock) as logits:
        for places, ids, _ in stock.forward(documents):
            for layer in range(stock.layers):
                roots = logits[layer].view(*ids.shape, -1).softmax(-1).sqrt()
                for row, place in enumerate(places):
                    result[place, layer] = roots[row, documents[place].request : documents[place].prompt].mean(0)
    return result


def token_signatures(stock: Stock, prompts: list[Example]) -> Tensor:
    """The baseline without a model: the root of each token's share in the prompt."""
    size = len(stock.tokenizer)
    rows = [stock.tokenizer(example.prompt)["input_ids"] for example in prompts]
    return torch.stack([torch.bincount(torch.tensor(row), minlength=size) / len(row) for row in rows]).sqrt()


def _prompt_only(encoded: Encoded) -> Encoded:
    prompt = encoded.ids[: encoded.prompt - 1]
    return Encoded(prompt, len(prompt), encoded.request)


def collect(measure: Callable[[list[Example]], Tensor], stored: Sequence[str], test: int) -> Signatures:
    """Signatures of all splits: known tasks give exemplars and cutoffs, all tasks are tested."""
    return Signatures(
        {task: measure(examples(task, "calibration", 256)) for task in stored},
        {task: measure(examples(task, "validation", 256)) for task in stored},
        {task: measure(examples(task, "test", min(test, 160) if task == "c_header" else test)) for task in EVERY_TASK},
    )


def flat(x: Tensor) -> Tensor:
    """Layers side by side, unit length."""
    return F.normalize(x.flatten(1), dim=-1)


def first_layer(x: Tensor) -> Tensor:
    """Layer 0 alone, unit length."""
    return F.normalize(x[:, 0], dim=-1)


Decider = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Signatures to the number of the nearest stored task, and whether to abstain."""


def decider(signatures: Signatures, stored: Sequence[str], setting: Setting) -> Decider:
    """Nearest exemplars, and a cutoff a task from its own validation prompts."""
    banks = [signatures.calibration[task][: setting.exemplars] for task in stored]

    def distances(x: Tensor) -> Tensor:
        near = [torch.cdist(x, bank).topk(setting.neighbours, largest=False).values.mean(-1) for bank in banks]
        return torch.stack(near, 1)

    cutoffs = torch.stack(
        [
            distances(signatures.validation[task][: setting.validation])[:, i].quantile(setting.quantile)
            for i, task in enumerate(stored)
        ]
    )

    def decide(x: Tensor) -> tuple[Tensor, Tensor]:
        nearest, choice = distances(x).min(1)
        return choice, nearest > cutoffs[choice]

    return decide


def recognise(signatures: Signatures, stored: Sequence[str], setting: Setting) -> dict[str, dict[str, Share]]:
    """Accuracy and false abstention on known tasks, abstention on unknown ones."""
    decide = decider(signatures, stored, setting)
    accuracy: dict[str, Share] = {}
    false: dict[str, Share] = {}
    unknown: dict[str, Share] = {}
    for task in EVERY_TASK:
        choice, abstained = decide(signatures.test[task])
        n = len(choice)
        if task in stored:
            accuracy[task] = Share.of(int((choice == list(stored).index(task)).sum()), n)
            false[task] = Share.of(int(abstained.sum()), n)
        else:
            unknown[task] = Share.of(int(abstained.sum()), n)
    return {"accuracy": accuracy, "false_abstention": false, "abstention": unknown}
