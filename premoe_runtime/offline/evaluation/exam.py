"""Test prompts with given answers, and what a model makes of them under a mask, beside what it makes of them whole.

A mask row decides which experts a token may use, so running under it gives what a worker with only those slots
gives. Exact match is taken by one teacher-forced forward: the answer, end token included, is the argmax at every
position if and only if greedy decoding writes it (by induction over its tokens).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from premoe_runtime.engines.hf.blocks import BlockModel
from premoe_runtime.engines.hf.calls import logits_of
from premoe_runtime.engines.hf.model import SlotModel
from premoe_runtime.formats.arrays import F64, I64, Mask
from premoe_runtime.formats.errors import CorruptData
from premoe_runtime.offline.batches import MAX_TOKENS, pad, plan_batches
from premoe_runtime.offline.calibration import Example
from premoe_runtime.offline.evaluation.outputs import Asked, Asking, Output, Outputs, in_memory, layer_by_layer, parts
from premoe_runtime.offline.profile.measure import make_full
from premoe_runtime.offline.profile.samples import Sample, encode_examples, end_token, targets

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


class Reference(Protocol):
    """What answers are compared with where that is another model than the one that gives them."""

    def states(self, task: str) -> Iterable[Tensor]:
        """Its last layer's outputs where the task's answers are predicted, [A, H] batch by batch."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """What its head makes of some of them: [A, V]."""
        ...


class Examiner:
    """Runs test prompts under masks.

    ``model`` needs slots for all experts and gets them filled, or is a ``BlockModel``: then everything that is asked at
    a time goes through one layer after the other, with the layers' inputs in ``spool``. With a ``reference``, which has
    the same tokenizer and prompts, KL is that to it, of the whole model too. Raises InvalidInput: a task without an
    example that fits, or without slots for every expert.
    """

    def __init__(
        self,
        model: SlotModel,
        data: Mapping[str, Sequence[Example]],
        *,
        max_tokens: int = MAX_TOKENS,
        spool: Path | None = None,
        passed_over: Callable[[str], None] = lambda place: None,
        reference: Reference | None = None,
    ) -> None:
        self._model, self._spool, self._reference = model, spool, reference
        self._samples = {
            task: encode_examples(model, examples, answers="given", where=task, passed_over=passed_over)
            for task, examples in data.items()
        }
        if not isinstance(model, BlockModel):
            make_full(model)
        self._end = len(end_token(model))
        self._batches = {task: self._planned(samples, max_tokens) for task, samples in self._samples.items()}
        self._known: tuple[str, list[Tensor], Answers] | None = None

    def answers(
        self,
        asked: Sequence[Asked],
        *,
        advance: Callable[[float], None] = lambda count: None,
        stage: Callable[[str], None] = lambda what: None,
    ) -> Iterator[Answers]:
        """What the model gives to each, in their order, best task by task.

        ``advance`` is told of prompts (or parts of them), ``stage`` of what is run. Raises CorruptData when answers are
        not finite, and what ``open_spool`` raises.
        """
        if not isinstance(self._model, BlockModel):
            outputs = in_memory(self._model, self._batches)
            for one in asked:
                stage(one.name)
                yield self._answers(one, Asked(one.task, None, self._model.manifest.top_k), outputs)
                advance(len(self._samples[one.task]))
            return
        for part in parts(self._model, asked, self._batches, self._spool):
            with layer_by_layer(self._model, part.runs, self._batches, self._spool, advance, stage) as outputs:
                self._known = None
                for one in part.asked:
                    yield self._answers(one, part.full[one.task], outputs)

    @property
    def states(self) -> Sequence[Tensor]:
        """What a ``Reference`` needs of this model, whole: of the task that was asked last."""
        assert self._known is not None, "something was asked"
        return self._known[1]

    def _answers(self, asked: Asked, full: Asked, outputs: Outputs) -> Answers:
        if self._reference is not None:
            shown = outputs(full if asked.kept is None else asked)
            return self._compared(asked.task, shown, self._reference.states(asked.task))
        if self._known is None or self._known[0] != asked.task:
            self._known = None
            states, found = list[Tensor](), _Found(len(self._samples[asked.task]))
            for asking, output in zip(self._batches[asked.task], outputs(full), strict=True):
                self._note(asked.task, asking, output, None, found)
                states.append(output.hidden.cpu())
            self._known = asked.task, states, found.answers()
        _, states, answers = self._known
        if asked.kept is None:
            return answers
        return self._compared(asked.task, outputs(asked), states)

    def _compared(self, task: str, outputs: Iterable[Output], states: Iterable[Tensor]) -> Answers:
        found = _Found(len(self._samples[task]))
        for asking, output, state in zip(self._batches[task], outputs, states, strict=True):
            self._note(task, asking, output, state, found)
        return found.answers()

    def _planned(self, samples: Sequence[Sample], max_tokens: int) -> list[Asking]:
        tokens = [sample.token_ids for sample in samples]
        asking = []
        for indices in plan_batches([len(ids) for ids in tokens], max_tokens):
            batch = pad(tokens, indices, device=self._model.device)
            asking.append(Asking(batch, *targets(batch.token_ids, [samples[index] for index in indices])))
        return asking

    @torch.no_grad()
    def _note(self, task: str, asking: Asking, output: Output, whole: Tensor | None, found: _Found) -> None:
        batch, wanted = asking.batch, asking.wanted
        samples = [self._samples[task][index] for index in batch.indices]
        parts = [
            self._judged(output.hidden[part], wanted[part], None if whole is None else whole[part])
            for part in (slice(start, start + HEAD_TOKENS) for start in range(0, len(wanted), HEAD_TOKENS))
        ]
        right, logp, kl = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
        masses = output.mass.double().cpu()
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
            logits = self._reference.logits if self._reference else partial(logits_of, self._model.model)
            full = logits(whole.to(hidden.device)).float().log_softmax(dim=-1)
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
