"""What probes say of a checkpoint's calibration prompts, talks and strangers, by the part of the model they look at."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from fixture_training.stock import Encoded, Stock
from premoe_local.tasks import UNKNOWN, examples
from premoe_local.tasks.wordings import PLAIN, Role, Talk, Turn, applies, kinds, strangers, talks

from premoe_runtime.formats.arrays import F32
from premoe_runtime.formats.signature import Signatures, Turns, unit
from premoe_runtime.offline.calibration import Message
from premoe_runtime.offline.prompts import encode_prompt

View = Callable[["Seen"], F32]
BATCH = 512


@dataclass(frozen=True, slots=True)
class Seen:
    """Means over a turn's own tokens: √p and logits of every router f32[L, E], and the first one's input f32[H]."""

    roots: F32
    logits: F32
    hidden: F32
    tokens: F32


@dataclass(frozen=True, slots=True)
class Asked:
    """A talk, or a stranger (``task`` "" for none that is stored), and what is seen of its turns."""

    kind: str
    task: str
    family: str
    turns: Turns[Seen]

    def signatures(self, view: View) -> Signatures:
        return self.turns.like([view(seen) for seen in self.turns.all])


class Probes:
    """The full model's routing. Layers behind the first would need a probe set of experts in a worker."""

    def __init__(self, stock: Stock) -> None:
        self._stock = stock

    def calibration(self, task: str, count: int) -> list[Seen]:
        """Of a task's calibration prompts."""
        return self._see([(Message("user", each.prompt),) for each in examples(task, "calibration", count)])

    def talks(self, stored: Sequence[str], role: Role, count: int) -> list[Asked]:
        """Of every stored task in the kinds of a role, and of its strangers, by themselves and behind a known turn."""
        found: list[tuple[str, str, str, Talk]] = []
        for kind in (PLAIN, *kinds(role)):
            for task in (each for each in stored if applies(each, kind)):
                found += [(kind, task, task, talk) for talk in talks(task, kind, count, split="test")]
        for family in strangers(role):
            found += [("stranger", "", family, talk) for talk in talks(family, PLAIN, count, split="test")]
            found += [
                ("stranger after", "", family, talk) for talk in talks(family, "turns.other", count, split="test")
            ]
        conversations = [_parts(talk.turns) for *_, talk in found]
        seen = self._see([turns for parts in conversations for turns in parts.all])
        asked = []
        for (kind, task, family, _), parts in zip(found, conversations, strict=True):
            mine, seen = seen[: len(parts.all)], seen[len(parts.all) :]
            asked.append(Asked(kind, task, family, parts.like(mine)))
        return asked

    def unknown(self, count: int) -> list[Asked]:
        """Of every task that is never stored."""
        asked = []
        for task in UNKNOWN:
            prompts = [(Message("user", each.prompt),) for each in examples(task, "test", count)]
            asked += [Asked("unknown", task, task, Turns(seen)) for seen in self._see(prompts)]
        return asked

    def _see(self, conversations: Sequence[Sequence[Any]]) -> list[Seen]:
        found: list[Seen] = []
        for start in range(0, len(conversations), BATCH):
            found += self._batch(conversations[start : start + BATCH])
        return found

    def _batch(self, conversations: Sequence[Sequence[Any]]) -> list[Seen]:
        stock = self._stock
        prompts = [encode_prompt(stock.tokenizer, turns) for turns in conversations]
        documents = [Encoded(list(prompt.token_ids), len(prompt.token_ids)) for prompt in prompts]
        inputs: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        handles = [gate.register_forward_hook(_watch(inputs, layer)) for layer, gate in enumerate(stock.gates())]
        found: dict[int, Seen] = {}
        try:
            for places, ids, _ in stock.forward(documents):
                for row, place in enumerate(places):
                    span = slice(prompts[place].span.start, prompts[place].span.stop)
                    parts = [
                        [part.view(*ids.shape, -1)[row, span] for part in inputs[layer]]
                        for layer in range(stock.layers)
                    ]
                    counts = torch.bincount(ids[row, span], minlength=len(stock.tokenizer)).float()
                    found[place] = Seen(
                        np.stack([logits.softmax(-1).sqrt().mean(0).numpy() for _, logits in parts]),
                        np.stack([logits.mean(0).numpy() for _, logits in parts]),
                        parts[0][0].mean(0).numpy(),
                        (counts / counts.sum()).sqrt().numpy(),
                    )
        finally:
            for handle in handles:
                handle.remove()
        return [found[place] for place in range(len(prompts))]


def first_layer(seen: Seen) -> F32:
    return unit(seen.roots[0])


def second_layer(seen: Seen) -> F32:
    return unit(seen.roots[1])


def two_layers(seen: Seen) -> F32:
    return unit(seen.roots[:2].ravel())


def all_layers(seen: Seen) -> F32:
    return unit(seen.roots.ravel())


def first_logits(seen: Seen) -> F32:
    return unit(seen.logits[0])


def hidden_state(seen: Seen) -> F32:
    return unit(seen.hidden)


def with_hidden_state(seen: Seen) -> F32:
    return unit(np.concatenate([first_layer(seen), hidden_state(seen)]))


def bag_of_tokens(seen: Seen) -> F32:
    return unit(seen.tokens)


def _parts(turns: Sequence[Turn]) -> Turns[Sequence[Turn]]:
    """The conversation, its last turn alone, and its earlier user turns, each alone."""
    if len(turns) == 1:
        return Turns(turns)
    earlier = tuple((turn,) for turn in turns[:-1] if turn.role == "user")
    return Turns(turns, (turns[-1],), earlier)


def _watch(inputs: dict[int, tuple[torch.Tensor, torch.Tensor]], layer: int) -> Any:
    def hook(_gate: Any, given: tuple[torch.Tensor], output: tuple[torch.Tensor, ...]) -> None:
        inputs[layer] = given[0], output[0]

    return hook
