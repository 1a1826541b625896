"""The exported checkpoint in the stock transformers class, observed from outside."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from premoe_local.tasks import Example
from premoe_local.tasks.wordings import Talk
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

TOKENS_PER_BATCH = 6000


@dataclass(frozen=True, slots=True)
class Encoded:
    """One document as tokens: the rendered prompt, then the answer with its end token."""

    ids: list[int]
    prompt: int
    """Tokens of the rendered prompt, template tokens included."""
    request: int = 1
    """Where the last turn's own tokens begin."""


class Stock:
    """A loaded checkpoint: weights as stored, arithmetic in 32 bits."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, dtype=torch.float32
        )
        self.model = loaded.eval()
        self.layers = int(self.model.config.num_hidden_layers)
        self.experts = int(self.model.config.num_experts)
        self.chosen = int(self.model.config.num_experts_per_tok)
        self.end = int(self.tokenizer.eos_token_id)

    def gates(self) -> list[Any]:
        """The router of every layer."""
        return [layer.mlp.gate for layer in self.model.model.layers]

    def encode(self, example: Example) -> Encoded:
        """An example in the chat format."""
        return self._encode([("user", example.prompt)], example.answer)

    def encode_talk(self, talk: Talk) -> Encoded:
        """A conversation in the chat format."""
        return self._encode([(turn.role, turn.content) for turn in talk.turns], talk.answer)

    def _encode(self, turns: list[tuple[str, str]], answer: str) -> Encoded:
        messages = [{"role": role, "content": content} for role, content in turns]
        before = self.tokenizer.apply_chat_template(messages[:-1], tokenize=False) if messages[1:] else ""
        whole = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompt = self.tokenizer(whole)["input_ids"]
        first = len(self.tokenizer(before)["input_ids"]) + 1
        continued = self.tokenizer(answer)["input_ids"] if answer else []
        return Encoded([*prompt, *continued, self.end], len(prompt), first)

    def forward(self, documents: list[Encoded]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Places, token ids and logits of the documents, in batches of similar length."""
        order = sorted(range(len(documents)), key=lambda place: len(documents[place].ids))
        while order:
            width = len(documents[order[-1]].ids)
            size = max(1, TOKENS_PER_BATCH // width)
            order, places = order[:-size], order[-size:]
            ids = torch.full((len(places), width), self.end)
            for row, place in enumerate(places):
                tokens = documents[place].ids
                ids[row, : len(tokens)] = torch.tensor(tokens)
            with torch.inference_mode():
                yield places, ids, self.model(input_ids=ids, use_cache=False).logits


@contextmanager
def observed(stock: Stock) -> Iterator[list[Tensor]]:
    """Collects the router logits of every layer of the last forward pass."""
    logits: list[Tensor] = [torch.empty(0)] * stock.layers

    def watch(layer: int) -> Any:
        def hook(_gate: Any, _inputs: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
            logits[layer] = output[0]

        return hook

    handles = [gate.register_forward_hook(watch(layer)) for layer, gate in enumerate(stock.gates())]
    try:
        yield logits
    finally:
        for handle in handles:
            handle.remove()
