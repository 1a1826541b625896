"""Calibration examples as the model sees them: prompt, answer, and the places where the answer is predicted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from premoe_runtime.engines.hf.model import SlotModel
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.offline.batches import MAX_TOKENS, plan_batches
from premoe_runtime.offline.calibration import Answers, Example, PassedOver
from premoe_runtime.offline.prompts import Prompt, encode_prompt, encode_text

OWN_TOKENS = 256
"""Longest answer that the model writes itself for a calibration prompt."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One example as the model sees it: the prompt's tokens, then the answer's and the end token."""

    prompt: Prompt
    answer: tuple[int, ...]
    line: int = 0
    """Where it stands in its file."""

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.prompt.token_ids + self.answer

    @property
    def predicted(self) -> range:
        """Places whose next token is the answer's: all but the last where there is no answer (open text)."""
        first = len(self.prompt.token_ids) - 1 if self.answer else 0
        return range(first, len(self.token_ids) - 1)


def encode_examples(
    model: SlotModel,
    examples: Sequence[Example],
    *,
    answers: Answers,
    where: str,
    passed_over: Callable[[str], None] = lambda place: None,
) -> list[Sample]:
    """Tokenise, rendered as requests are.

    Examples that are longer than the model's context or that its chat template refuses are left out, and
    ``passed_over`` is told ``where:LINE: reason``. Raises InvalidInput when none is left.
    """
    unused = PassedOver()
    samples: list[Sample] = []
    for example in examples:
        try:
            samples.append(_sample(model, example, answers))
        except InvalidInput as error:
            unused(f"{where}:{example.line}: {error}")
    if unused.places and not samples:
        raise InvalidInput(unused.places[0], reason="CALIBRATION_INVALID")
    for place in unused.places:
        passed_over(place)
    return samples


def _sample(model: SlotModel, example: Example, answers: Answers) -> Sample:
    prompt = encode_prompt(model.tokenizer, example.messages)
    answer: tuple[int, ...] = ()
    if answers == "given" and example.answer is not None:
        answer = (*encode_text(model.tokenizer, example.answer), *end_token(model))
    sample = Sample(prompt, answer, example.line)
    context = context_of(model)
    if context is not None and len(sample.token_ids) > context:
        raise InvalidInput(
            f"{len(sample.token_ids)} tokens exceed the model's context of {context}", reason="PROMPT_TOO_LONG"
        )
    return sample


def own_answers(
    model: SlotModel,
    samples: Sequence[Sample],
    max_tokens: int = MAX_TOKENS,
    known: Mapping[int, tuple[int, ...]] | None = None,
) -> Iterator[dict[int, tuple[int, ...]]]:
    """What the full model writes greedily, up to ``OWN_TOKENS`` or the end of its context, by the sample's index.

    Batch by batch; of those whose answers are ``known`` nothing is asked.
    """
    context, known = context_of(model), known or {}
    prompts = [sample.prompt.token_ids for sample in samples]
    for indices in plan_batches([len(ids) + OWN_TOKENS for ids in prompts], max_tokens):
        if known.keys() >= set(indices):
            continue
        room = OWN_TOKENS if context is None else context - max(len(prompts[index]) for index in indices)
        written = _written(model, [prompts[i] for i in indices], room) if room > 0 else [()] * len(indices)
        yield dict(zip(indices, written, strict=True))


def targets(token_ids: Tensor, samples: Sequence[Sample]) -> tuple[Tensor, Tensor, Tensor]:
    """Row, place and next token (i64[N] each) of every predicted token of a batch, sample by sample."""
    pairs = [(row, place) for row, sample in enumerate(samples) for place in sample.predicted]
    rows, places = torch.tensor(pairs, dtype=torch.long, device=token_ids.device).reshape(-1, 2).unbind(1)
    return rows, places, token_ids[rows, places + 1]


def context_of(model: SlotModel) -> int | None:
    """Longest sequence the model takes, where its config says so."""
    context: int | None = getattr(model.model.config, "max_position_embeddings", None)
    return context


def end_token(model: SlotModel) -> tuple[int, ...]:
    """The token that ends an answer, as a tuple of one; empty when the tokenizer names none."""
    end = model.tokenizer.eos_token_id
    return () if end is None else (int(end),)


def _written(model: SlotModel, prompts: Sequence[tuple[int, ...]], room: int) -> list[tuple[int, ...]]:
    end = end_token(model)
    width = max(map(len, prompts))
    ids = torch.tensor([(0,) * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    real = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    with torch.no_grad():
        out = model.model.generate(
            input_ids=ids,
            attention_mask=real,
            max_new_tokens=min(room, OWN_TOKENS),
            do_sample=False,
            eos_token_id=end[0] if end else None,
            pad_token_id=end[0] if end else 0,
        )
    rows: list[list[int]] = out[:, width:].tolist()
    return [tuple(row[: row.index(end[0]) + 1] if end and end[0] in row else row) for row in rows]
