"""A small trainer: AdamW over a student's weights or adapters, deterministic by its seed, resumable after a kill."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import blake3
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from premoe_runtime.compress.method import Job, Quiet, Report
from premoe_runtime.compress.objectives import Objective
from premoe_runtime.compress.student import Lesson, Student
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.offline.batches import plan_batches
from premoe_runtime.offline.profile.samples import Sample, encode_examples

CHECKPOINT = "checkpoint.safetensors"
TOKENS_AT_ONCE = 2048
"""Tokens, padding included, whose activations are in memory: a step's batch is taken in such pieces."""
Decay = Literal["cosine", "linear"]
MEANS = ("exp_avg", "exp_avg_sq")
"""What AdamW remembers of a weight."""


@dataclass(frozen=True, slots=True)
class Training:
    """How long and how fast. ``tokens``: of one step; ``warmup``: part of the steps; ``every``: steps between saves."""

    steps: int
    rate: float = 1e-3
    tokens: int = 4096
    warmup: float = 0.1
    decay: Decay = "cosine"
    clip: float = 1.0
    weight_decay: float = 0.0
    every: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises InvalidInput (TRAINING_INVALID)."""
        wrong = {
            "steps": self.steps < 0,
            "rate": not (self.rate > 0 and math.isfinite(self.rate)),
            "tokens": self.tokens < 1,
            "clip": not self.clip > 0,
            "every": self.every < 1,
        }
        for name in (name for name, is_wrong in wrong.items() if is_wrong):
            raise InvalidInput(
                f"--{name} is {getattr(self, name)}, and training needs more than that; give a larger one",
                reason="TRAINING_INVALID",
            )


def rate_at(training: Training, step: int) -> float:
    """Learning rate of step 0 to ``steps`` - 1: up over the warm-up, then down to nothing behind the last."""
    warm = math.ceil(training.warmup * training.steps)
    if step < warm:
        return training.rate * (step + 1) / warm
    part = (step - warm) / max(training.steps - warm, 1)
    return training.rate * (1 - part if training.decay == "linear" else (1 + math.cos(math.pi * part)) / 2)


def draws(lengths: Sequence[int], tokens: int, seed: int) -> Iterator[tuple[int, ...]]:
    """Without end: which samples each step takes, ``tokens`` together but at least one, each sample once a round."""
    generator = torch.Generator().manual_seed(seed)
    taken, total = list[int](), 0
    while True:
        for index in torch.randperm(len(lengths), generator=generator).tolist():
            if taken and total + lengths[index] > tokens:
                yield tuple(taken)
                taken, total = [], 0
            taken.append(index)
            total += lengths[index]


def samples_of(job: Job, student: Student) -> list[Sample]:
    """The job's examples as the model sees them. Raises InvalidInput: none of a task's fits."""
    return [
        sample
        for task, examples in job.data.items()
        for sample in encode_examples(student.slots, examples, answers="given", where=task, passed_over=job.report.note)
    ]


def train(
    student: Student,
    samples: Sequence[Sample],
    objective: Objective,
    training: Training,
    folder: Path,
    *,
    purpose: str = "",
    report: Report | None = None,
) -> list[float]:
    """Take ``student`` through the steps and return each one's mean loss a predicted token.

    Every ``every`` steps ``folder`` gets a checkpoint; a run of the same student, samples, training and ``purpose``
    (what the objective depends on) goes on with it, to bit-identical weights. Raises InvalidInput (LOSS_NOT_FINITE).
    """
    report, path = report or Quiet(), folder / CHECKPOINT
    optimiser = torch.optim.AdamW(student.trained.values(), lr=training.rate, weight_decay=training.weight_decay)
    key = _key(student, samples, training, purpose)
    losses = _restored(path, key, student.trained, optimiser)
    report.stage("training", training.steps)
    report.advance(len(losses))
    lengths = [len(sample.token_ids) for sample in samples]
    for step, drawn in enumerate(islice(draws(lengths, training.tokens, training.seed), training.steps)):
        if step < len(losses):
            continue
        for group in optimiser.param_groups:
            group["lr"] = rate_at(training, step)
        losses.append(_step(student, [samples[index] for index in drawn], objective, optimiser, training, step))
        report.advance(1)
        if len(losses) % training.every == 0 or len(losses) == training.steps:
            _save(path, key, student.trained, optimiser, losses)
    return losses


def _step(
    student: Student,
    samples: Sequence[Sample],
    objective: Objective,
    optimiser: torch.optim.AdamW,
    training: Training,
    step: int,
) -> float:
    """One step of AdamW over a batch taken piece by piece; the mean loss a predicted token."""
    optimiser.zero_grad(set_to_none=True)
    predicted, total = sum(len(sample.predicted) for sample in samples), 0.0
    for piece in plan_batches([len(sample.token_ids) for sample in samples], TOKENS_AT_ONCE):
        lesson = Lesson.of([samples[index] for index in piece], student.device)
        with torch.enable_grad():
            loss = objective(student.run(lesson), lesson) / max(predicted, 1)
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    norm = torch.nn.utils.clip_grad_norm_(student.trained.values(), training.clip)
    if not (math.isfinite(total) and bool(norm.isfinite())):
        raise InvalidInput(
            f"the loss is {total:g}, its gradient {float(norm):g} in step {step + 1} of {training.steps}; give a lower "
            "--rate",
            reason="LOSS_NOT_FINITE",
        )
    optimiser.step()
    return total


def _key(student: Student, samples: Sequence[Sample], training: Training, purpose: str) -> str:
    """Names what a training's weights depend on."""
    facts = [student.old.manifest.model_id, student.rank, sorted(student.trained), asdict(training), purpose]
    whole = blake3.blake3(json.dumps(facts).encode())
    for sample in samples:
        whole.update(repr((sample.token_ids, sample.predicted)).encode())
    return whole.hexdigest()


def _save(
    path: Path, key: str, trained: Mapping[str, Tensor], optimiser: torch.optim.AdamW, losses: Sequence[float]
) -> None:
    """Weights, AdamW's means and losses, whole or not at all."""
    tensors = {"losses": torch.tensor(losses, dtype=torch.float64)}
    for name, weight in trained.items():
        tensors[f"weight/{name}"] = weight.detach().contiguous()
        # What no token reached has no means yet.
        for mean in MEANS if weight in optimiser.state else ():
            tensors[f"{mean}/{name}"] = optimiser.state[weight][mean].contiguous()
            tensors[f"step/{name}"] = optimiser.state[weight]["step"]
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    save_file(tensors, unfinished, metadata={"key": key})
    unfinished.replace(path)


def _restored(path: Path, key: str, trained: Mapping[str, Tensor], optimiser: torch.optim.AdamW) -> list[float]:
    """The losses of the steps that a checkpoint of this training has behind it, after taking its weights over."""
    if not path.is_file():
        return []
    with safe_open(path, framework="pt") as file:
        if file.metadata()["key"] != key:
            return []
        there = set(file.keys())
        for name, weight in trained.items():
            weight.data.copy_(file.get_tensor(f"weight/{name}"))
            if f"step/{name}" in there:
                state = {mean: torch.empty_like(weight).copy_(file.get_tensor(f"{mean}/{name}")) for mean in MEANS}
                optimiser.state[weight] = {"step": file.get_tensor(f"step/{name}"), **state}
        losses: list[float] = file.get_tensor("losses").tolist()
    return losses
