"""Accuracy and perplexity of patterns, all at equal slots, with one model that holds every expert.

A mask row decides which experts a token may use, so running under it gives what a worker with only those slots
gives. Exact match is taken by one teacher-forced forward: the answer, end token included, is the argmax at every
position if and only if greedy decoding writes it (by induction over its tokens).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, get_args

import numpy as np
import torch

from premoe_runtime.engines.hf.model import SlotModel
from premoe_runtime.formats.allocation import Splits
from premoe_runtime.formats.arrays import Mask, existing
from premoe_runtime.formats.budget import DEFAULT_SPARE_SLOTS, Budget
from premoe_runtime.formats.choices import Allocation
from premoe_runtime.formats.errors import InvalidInput, NotFound
from premoe_runtime.formats.pattern import Metric, Pattern
from premoe_runtime.offline.batches import MAX_TOKENS, Batch, pad, plan_batches
from premoe_runtime.offline.calibration import Example
from premoe_runtime.offline.patterns.derive import generalist, specialist
from premoe_runtime.offline.profile.measure import make_full
from premoe_runtime.offline.profile.record import Profile
from premoe_runtime.offline.profile.samples import Sample, encode_examples, end_token, targets
from premoe_runtime.offline.profile.scores import random_scores

Variant = Literal["full", "specialist", "served", "generalist", "random", "wrong"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)
ROW = 1
"""Mask row of the pattern under test; row 0 keeps every expert."""


@dataclass(frozen=True, slots=True)
class Run:
    """One task under one pattern at one budget; ``pattern`` and ``budget`` are None for the full model.

    ``slots`` are a worker's, layer by layer, for what is kept ``served`` by one; elsewhere the pattern's own split.
    """

    task: str
    variant: Variant
    budget: Budget | None
    pattern: Pattern | None
    """For ``wrong``: the specialist of the next stored task in alphabetical order."""
    slots: tuple[int, ...] | None = None

    def kept(self) -> Mask | None:
        """bool[L, E], or None for all experts. Raises InvalidInput like ``Pattern.kept``."""
        return self.pattern.kept(self.budget, self.slots) if self.pattern and self.budget else None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run gave.

    correct     examples whose whole answer greedy decoding writes, end token included
    perplexity  of the given answers' tokens, end token left out
    mass        full router's probability on usable experts, mean over prompt and answer tokens and layers
    """

    run: Run
    examples: int
    correct: int
    perplexity: float
    mass: float

    @property
    def accuracy(self) -> float:
        return self.correct / self.examples


@dataclass(frozen=True, slots=True)
class Patterns:
    """What an evaluation compares under one rule: a specialist per task, and the two that stand in for them.

    ``splits`` are those of a set that shares its budgets over the layers: a worker with ``spare`` slots a layer serves
    its tasks within one split.
    """

    specialists: Mapping[str, Pattern]
    generalist: Pattern | None
    random: Pattern | None
    splits: Splits | None = None
    spare: int = DEFAULT_SPARE_SLOTS

    @classmethod
    def by_rule(cls, profiles: Sequence[Profile], metric: Metric, allocation: Allocation, *, seed: int = 0) -> Patterns:
        """Of one profile a task, by one metric. Raises InvalidInput where the profiles cannot tell it."""
        *each, pool = (
            replace(pattern, allocation=allocation)
            for pattern in (
                *(specialist(profile, metric, seed=seed) for profile in profiles),
                generalist(profiles, metric, seed=seed),
            )
        )
        shared = allocation == "shared"
        splits = Splits.of([pattern.scores for pattern in each], profiles[0].top_k) if shared else None
        return cls({pattern.task: pattern for pattern in each}, pool, None, splits)

    def slots(self, budget: Budget) -> tuple[int, ...] | None:
        """Slots of every layer of a worker that serves all tasks at ``budget``; None: equally many."""
        return None if self.splits is None else self.splits.layer_slots(budget.kept, self.spare)


def random_pattern(like: Pattern, seed: int = 0) -> Pattern:
    """A pattern that keeps as many experts of the same model, at random."""
    zeros = np.zeros(like.scores.shape)
    return Pattern.from_scores(
        np.where(existing(like.layer_experts), random_scores((like.num_layers, like.num_experts), seed), -np.inf),
        zeros,
        zeros.astype(np.int64),
        weights_id=like.weights_id,
        task="random",
        kind="specialist",
        metric="random",
        profiles=(),
    )


def plan_runs(tasks: Sequence[str], budgets: Sequence[Budget], *rules: Patterns) -> list[Run]:
    """Every run of an evaluation, rule by rule. Raises NotFound for a task without a specialist."""
    for rule, task in product(rules, tasks):
        if task not in rule.specialists:
            raise NotFound(
                f"no pattern for task {task!r}; there are {', '.join(sorted(rule.specialists))}",
                reason="TASK_UNKNOWN",
            )
    runs = [Run(task, "full", None, None) for task in tasks]
    for rule, task, budget in product(rules, tasks, budgets):
        own = rule.specialists[task]
        compared: dict[Variant, Pattern | None] = {
            "specialist": own,
            "served": own if rule.splits is not None else None,
            "generalist": rule.generalist,
            "random": rule.random,
            "wrong": _other(task, rule.specialists),
        }
        for name, pattern in compared.items():
            if pattern is not None:
                runs.append(Run(task, name, budget, pattern, rule.slots(budget) if name == "served" else None))
    return runs


def evaluate(
    model: SlotModel,
    data: Mapping[str, Sequence[Example]],
    runs: Sequence[Run],
    *,
    max_tokens: int = MAX_TOKENS,
    advance: Callable[[int], None] = lambda _: None,
    passed_over: Callable[[str], None] = lambda place: None,
) -> Iterator[Outcome]:
    """Carry ``runs`` out one by one; ``model`` needs slots for all experts and gets them filled.

    ``data`` holds every task's examples, all with answers. ``advance`` is told how many examples each batch had,
    ``passed_over`` which are not used. Raises InvalidInput: no example that fits, a budget the model cannot run,
    patterns of other weights.
    """
    manifest = model.manifest
    for run in runs:
        if run.budget is not None:
            run.budget.check(top_k=manifest.top_k, num_experts=manifest.num_experts)
        if run.pattern is not None and run.pattern.weights_id != manifest.weights_id:
            raise InvalidInput(
                f"pattern of task {run.pattern.task} belongs to weights {run.pattern.weights_id[:12]}, "
                f"the model has {manifest.weights_id[:12]}",
                reason="WEIGHTS_MISMATCH",
            )
    samples = {
        task: encode_examples(model, examples, answers="given", where=task, passed_over=passed_over)
        for task, examples in data.items()
    }
    make_full(model)
    scored = 1 if end_token(model) else 0
    for run in runs:
        yield _outcome(model, run, samples[run.task], scored, max_tokens, advance)


def retained_accuracy(outcomes: Sequence[Outcome], variant: Variant, budget: Budget) -> float | None:
    """Right answers under ``variant`` over right answers of the full model, all tasks pooled; None without any."""
    full = sum(outcome.correct for outcome in outcomes if outcome.run.variant == "full")
    kept = sum(
        outcome.correct for outcome in outcomes if outcome.run.variant == variant and outcome.run.budget == budget
    )
    return kept / full if full else None


def generalist_mass(outcomes: Sequence[Outcome], budget: Budget) -> float:
    """Router mass that the generalist keeps at ``budget``, mean over tasks; 0 without any such run."""
    masses = [o.mass for o in outcomes if o.run.variant == "generalist" and o.run.budget == budget]
    return sum(masses) / len(masses) if masses else 0.0


def _outcome(
    model: SlotModel, run: Run, samples: Sequence[Sample], end: int, max_tokens: int, advance: Callable[[int], None]
) -> Outcome:
    row, active, kept = 0, model.manifest.top_k, run.kept()
    if run.budget is not None and kept is not None:
        model.store.set_row(ROW, kept)
        row, active = ROW, run.budget.active
    tokens = [sample.token_ids for sample in samples]
    correct, nll, scored, mass, seen = 0, 0.0, 0, 0.0, 0
    with model.steps(row, active):
        for indices in plan_batches([len(ids) for ids in tokens], max_tokens):
            batch = pad(tokens, indices, device=model.device)
            logp, right = _answers(model, batch, [samples[index] for index in indices])
            mass += float(model.retained_mass()[batch.valid.flatten()].double().sum())
            seen += int(batch.valid.sum())
            for index in range(len(indices)):
                correct += bool(right[index].all())
                given = logp[index][: len(logp[index]) - end]
                nll -= float(given.double().sum())
                scored += len(given)
            advance(len(indices))
    # An answer that the model gives no chance makes the perplexity overflow; infinity is no JSON.
    perplexity = math.exp(min(nll / max(scored, 1), 700.0))
    return Outcome(run, len(samples), correct, perplexity, mass / seen)


@torch.no_grad()
def _answers(
    model: SlotModel, batch: Batch, samples: Sequence[Sample]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Per sample: log-probability f32[A] of every answer token, and bool[A] whether it is the argmax."""
    hidden = model.model.get_decoder()(input_ids=batch.token_ids, use_cache=False).last_hidden_state
    rows, places, wanted = targets(batch.token_ids, samples)
    counts = [len(sample.predicted) for sample in samples]
    logits = model.model.get_output_embeddings()(hidden[rows, places]).float()
    logp = logits.log_softmax(dim=-1).gather(1, wanted[:, None])[:, 0].cpu()
    right = (logits.argmax(dim=-1) == wanted).cpu()
    return list(logp.split(counts)), list(right.split(counts))


def _other(task: str, specialists: Mapping[str, Pattern]) -> Pattern | None:
    names = sorted(specialists)
    other = names[(names.index(task) + 1) % len(names)]
    return None if other == task else specialists[other]
