"""Exact match and perplexity of the stock model, whole."""

import math
from dataclasses import dataclass

import torch
from premoe_local.tasks import Example, check
from torch.nn import functional as F

from fixture_training.chat import render
from fixture_training.stock import Encoded, Stock


@dataclass(frozen=True, slots=True)
class Share:
    """A share of trials, in per cent, with twice its standard error."""

    percent: float
    two_errors: float
    n: int

    @staticmethod
    def of(hits: int, n: int) -> "Share":
        """The error is that of Agresti and Coull, which does not vanish at 0 and 100 %."""
        middle = (hits + 2) / (n + 4)
        error = math.sqrt(middle * (1 - middle) / (n + 4))
        return Share(round(100 * hits / n, 2), round(200 * error, 2), n)


def matches(stock: Stock, documents: list[Encoded]) -> list[bool]:
    """Whether each answer, end token included, is what greedy decoding gives.

    Greedy decoding repeats an answer exactly when every token of it is the most likely one after those before it,
    so one forward pass decides.
    """
    result = [False] * len(documents)
    for places, ids, logits in stock.forward(documents):
        right = logits[:, :-1].argmax(-1) == ids[:, 1:]
        for row, place in enumerate(places):
            document = documents[place]
            result[place] = bool(right[row, document.prompt - 1 : len(document.ids) - 1].all())
    return result


def perplexity(stock: Stock, documents: list[Encoded]) -> float:
    """Perplexity of the continuations, per token; the end token is left out, since excerpts are cut anywhere."""
    loss, tokens = 0.0, 0
    for places, ids, logits in stock.forward(documents):
        each = F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
        for row, place in enumerate(places):
            document = documents[place]
            span = slice(document.prompt - 1, len(document.ids) - 2)
            loss += float(each[row, span].sum())
            tokens += span.stop - span.start
    return math.exp(loss / tokens)


def generated(stock: Stock, examples: list[Example], batch: int = 64, limit: int = 64) -> list[str]:
    """Answers by the stock class's greedy `generate`."""
    answers: list[str] = []
    for start in range(0, len(examples), batch):
        prompts = [render(example.prompt) for example in examples[start : start + batch]]
        inputs = stock.tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
        with torch.inference_mode():
            ids = stock.model.generate(**inputs, max_new_tokens=limit, do_sample=False)
        new = ids[:, inputs["input_ids"].shape[1] :]
        answers += stock.tokenizer.batch_decode(new, skip_special_tokens=True)
    return answers


def agreement(stock: Stock, examples: list[Example]) -> tuple[int, int]:
    """On how many examples one forward pass and `generate` agree about the answer being right, and of how many."""
    single = matches(stock, [stock.encode(example) for example in examples])
    full = [check(e, text) for e, text in zip(examples, generated(stock, examples), strict=True)]
    return sum(a == b for a, b in zip(single, full, strict=True)), len(examples)
