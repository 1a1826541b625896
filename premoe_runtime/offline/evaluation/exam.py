"""Test prompts with given answers, and what a model makes of them under a mask, beside what it makes of them whole.

A mask row decides which experts a token may use, so running under it gives what a worker with only those slots
gives. Exact match is taken by one teacher-forced forward: the answer, end token included, is the argmax at every
position if and only if greedy decoding writes it (by induction over its tokens).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from premoe_runtime.engines.hf.calls import layer_calls, logits_of
from premoe_runtime.engines.hf.model import SlotModel
from premoe_runtime.formats.arrays import F64, I64, Mask
from premoe_runtime.formats.errors import CorruptData
from premoe_runtime.offline.batches import MAX_TOKENS, Batch, pad, plan_batches
from premoe_runtime.offline.calibration import Example
from premoe_runtime.offline.profile.measure import make_full
from premoe_runtime.offline.profile.samples import Sample, encode_examples, end_token, targets

ROW = 1
"""Mask row of the experts under test; row 0 keeps every expert."""
HEAD_TOKENS = 1024
"""Answer tokens whose logits are in memory at once, twice."""


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What a model made of N test prompts with given answers, prompt by prompt.

    right   bool[N]: greedy decoding writes the whole answer, end token included
    nll     f64[N], nats: of the given answer's tokens together, end token left out
    tokens  i64[N]: how many these are
    kl      f64[N], nats: KL(full model || this one), mean over the places where the answer is predicted
    mass    f64[N]: full router's probability on usable experts, mean over the prompt's and answer's tokens and layers
    """

    right: Mask
    nll: F64
    tokens: I64
    kl: F64
    mass: F64

    @property
    def perplexity(self) -> float:
        """Of the given answers' tokens, all prompts together."""
        return perplexity(float(self.nll.sum()), int(self.tokens.sum()))


def perplexity(nll: float, tokens: float) -> float:
    """Of tokens with so many nats together. What a model gives no chance overflows, and infinity is no JSON."""
    return float(np.exp(min(nll / max(tokens, 1), 700.0)))


class Examiner:
    """Runs test prompts under masks; of one task at a time it remembers what the full model gave.

    ``model`` needs slots for all experts and gets them filled. Raises InvalidInput: a task without an example that
    fits, or without slots for every expert.
    """

    def __init__(
        self,
        model: SlotModel,
        data: Mapping[str, Sequence[Example]],
        *,
        max_tokens: int = MAX_TOKENS,
        passed_over: Callable[[str], None] = lambda place: None,
    ) -> None:
        self._model, self._max_tokens = model, max_tokens
        self._samples = {
            task: encode_examples(model, examples, answers="given", where=task, passed_over=passed_over)
            for task, examples in data.items()
        }
        make_full(model)
        self._end = len(end_token(model))
        self._known: tuple[str, list[Tensor], Answers] | None = None

    def full(self, task: str) -> Answers:
        """What the full model gives. Raises CorruptData when that is not finite."""
        return self._reference(task)[1]

    def under(self, task: str, kept: Mask, active: int, advance: Callable[[int], None] = lambda count: None) -> Answers:
        """What the model gives with ``kept`` bool[L, E] alone, ``active`` of them a token.

        ``advance`` is told how many prompts each batch had. Raises CorruptData like ``full``.
        """
        whole, _ = self._reference(task)
        self._model.store.set_row(ROW, kept)
        samples, found = self._samples[task], _Found(len(self._samples[task]))
        with self._model.steps(ROW, active):
            for number, batch in enumerate(self._batches(task)):
                hidden = self._hidden(batch, samples)
                self._note(task, batch, hidden, whole[number], found)
                advance(len(batch.indices))
        return found.answers()

    def _reference(self, task: str) -> tuple[list[Tensor], Answers]:
        if self._known is None or self._known[0] != task:
            self._known = None
            samples, found, states = self._samples[task], _Found(len(self._samples[task])), list[Tensor]()
            with self._model.steps(0):
                for batch in self._batches(task):
                    hidden = self._hidden(batch, samples)
                    self._note(task, batch, hidden, None, found)
                    states.append(hidden.cpu())
            self._known = task, states, found.answers()
        return self._known[1:]

    def _batches(self, task: str) -> list[Batch]:
        tokens = [sample.token_ids for sample in self._samples[task]]
        plan = plan_batches([len(ids) for ids in tokens], self._max_tokens)
        return [pad(tokens, indices, device=self._model.device) for indices in plan]

    @torch.no_grad()
    def _hidden(self, batch: Batch, samples: Sequence[Sample]) -> Tensor:
        """The last layer's output [A, H] where answer tokens are predicted, sample by sample."""
        calls = layer_calls(self._model.model, batch.token_ids)
        hidden = calls[0].embedded
        for call in calls:
            hidden = call(hidden)
        rows, places, _ = targets(batch.token_ids, [samples[index] for index in batch.indices])
        return hidden[rows, places]

    @torch.no_grad()
    def _note(self, task: str, batch: Batch, hidden: Tensor, whole: Tensor | None, found: _Found) -> None:
        samples = [self._samples[task][index] for index in batch.indices]
        _, _, wanted = targets(batch.token_ids, samples)
        parts = [
            self._judged(hidden[part], wanted[part], None if whole is None else whole[part])
            for part in (slice(start, start + HEAD_TOKENS) for start in range(0, len(wanted), HEAD_TOKENS))
        ]
        right, logp, kl = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
        masses = self._model.retained_mass().view(batch.valid.shape).double().cpu()
        lengths = [len(sample.predicted) for sample in samples]
        each = zip(batch.indices, *(torch.split(values, lengths) for values in (right, logp, kl)), strict=True)
        for row, (index, hits, logs, far) in enumerate(each):
            if not bool(logs.isfinite().all() and far.isfinite().all()):
                raise CorruptData(
                    f"{task}:{samples[row].line}: the model's answer is not a number; its weights may be damaged, or "
                    "--dtype too narrow for them",
                    reason="LOGITS_INVALID",
                )
            given = logs[: len(logs) - self._end]
            found.right[index] = bool(hits.all())
            found.nll[index] = -float(given.sum())
            found.tokens[index] = len(given)
            found.kl[index] = float(far.mean())
            found.mass[index] = float(masses[row, : len(samples[row].token_ids)].mean())

    def _judged(self, hidden: Tensor, wanted: Tensor, whole: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Of A answer tokens: whether each is the first choice, its log-probability, KL(full || this); f64."""
        logp = logits_of(self._model.model, hidden).float().log_softmax(dim=-1)
        kl = torch.zeros(len(wanted), device=logp.device)
        if whole is not None:
            full = logits_of(self._model.model, whole.to(hidden.device)).float().log_softmax(dim=-1)
            kl = (full.exp() * (full - logp)).sum(dim=-1).clamp(min=0)
        own = logp.gather(1, wanted[:, None])[:, 0]
        return logp.argmax(dim=-1) == wanted, own.double(), kl.double()


class _Found:
    """Answers of N prompts as they come in, batch by batch."""

    def __init__(self, count: int) -> None:
        self.right = np.zeros(count, np.bool_)
        self.nll, self.kl, self.mass = np.zeros(count), np.zeros(count), np.zeros(count)
        self.tokens = np.zeros(count, np.int64)

    def answers(self) -> Answers:
        return Answers(self.right, self.nll, self.tokens, self.kl, self.mass)
