"""Narrower experts, all of them kept: neurons go in stages, and after each the original model teaches what is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from premoe_runtime.compress.config import width_multiple, width_of
from premoe_runtime.compress.look import Arrays, Looked, Seen, look
from premoe_runtime.compress.method import Job, Method, setting
from premoe_runtime.compress.objectives import Distilled, Objective
from premoe_runtime.compress.plan import Made, Plan
from premoe_runtime.compress.result import Compressed, planned
from premoe_runtime.compress.stages import Step, through, tuned
from premoe_runtime.compress.student import Part, Student
from premoe_runtime.compress.trainer import Training
from premoe_runtime.compress.weights import PackWeights
from premoe_runtime.formats.arrays import F64
from premoe_runtime.formats.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Settings:
    """The paper trains on 400 B tokens in several stages; what it leaves open was chosen by eight runs on tiny-moe.

    They were judged by its test prompts, one seed each: more and smaller steps, the blocks' outputs beside the logits,
    and experts and routers alone each helped; two cuts did not, with as little training as they had.
    """

    stages: int = setting(1, "Cuts on the way to the budget's width, each by the same factor.")
    steps: int = setting(200, "Steps of training after each cut; 0: none.")
    rate: float = setting(1e-3, "Highest learning rate; the larger the model, the lower: 1e-5 for billions of weights.")
    tokens: int = setting(1024, "Tokens of a step.")
    rank: int = setting(0, "Rank of low-rank adapters that are trained; 0: the weights themselves.")
    answers: float = setting(1.0, "Weight of the answers' cross-entropy beside the teacher's logits.")
    hidden: float = setting(1.0, "Weight of the blocks' outputs beside the teacher's logits.")
    every_weight: bool = setting(False, "Train attention, norms and embeddings, too, not only experts and routers.")


def compress(job: Job) -> Compressed:
    """Cut and train in turns.

    Memory while it trains: 16 bytes a trained weight of the narrowed model and 4 a weight of the original. Raises
    InvalidInput: a width that is none, settings without sense.
    """
    settings: Settings = job.settings
    training = training_of(settings, job.seed)
    steps: list[Step] = []
    for width in widths(job.old, job.share.part, settings.stages):
        steps += [partial(_narrowed, width), partial(_taught, job.old, training)]
    return through(job, steps)


def training_of(settings: Settings, seed: int) -> Training:
    return Training(steps=settings.steps, rate=settings.rate, tokens=settings.tokens, seed=seed)


def widths(old: PackWeights, part: float, stages: int) -> list[int]:
    """Of every stage, each by the same factor narrower, all such that kernels take them.

    Raises InvalidInput (STAGES_INVALID, SHARE_TOO_SMALL).
    """
    whole, multiple = width_of(old.model), width_multiple(old.manifest.dtype)
    if stages < 1:
        raise InvalidInput(f"--stages is {stages}; give 1 or more", reason="STAGES_INVALID")
    last = int(part * whole / multiple + 1e-9) * multiple
    if last < multiple:
        raise InvalidInput(
            f"{100 * part:g}% of {whole} neurons are less than the {multiple} that kernels take; give a larger "
            "--budget, or drop experts by select",
            reason="SHARE_TOO_SMALL",
        )
    found = [last]
    for stage in range(stages - 1, 0, -1):
        between = whole * (last / whole) ** (stage / stages)
        found.insert(0, max(round(between / multiple) * multiple, last))
    return sorted({width for width in found if width < whole} | {last}, reverse=True)


class Neurons:
    """Watches what a layer's neurons give: Σ over an expert's tokens of (g a)², a before ``down``; f64[E, I]."""

    def __init__(self, experts: int, width: int) -> None:
        self._total = torch.zeros(experts, width, dtype=torch.float64)

    def see(self, seen: Seen) -> None:
        for expert in set(seen.ids.flatten().tolist()) - {len(self._total)}:
            tokens, weights = seen.of(expert)
            given: Tensor = weights[:, None] * seen.activations(expert, seen.inputs[tokens])
            self._total[expert] += given.double().square().sum(dim=0).cpu()

    def result(self) -> Arrays:
        return {"given": self._total.numpy()}


def neurons(found: F64, down: Tensor, width: int) -> Sequence[Sequence[int]]:
    """Those ``width`` of each expert that stay, ascending: the largest Σ (g a)² ‖column of down‖².

    found f64[E, I]; down [E, H, I]. Where no token came, the norm of the columns decides.
    """
    norms = down.double().square().sum(dim=1).numpy()
    order = np.lexsort((-norms, -found * norms), axis=-1)
    kept: list[list[int]] = np.sort(order[:, :width], axis=-1).tolist()
    return kept


def _narrowed(width: int, job: Job) -> Compressed:
    old, whole = job.old, width_of(job.old.model)
    looked: Looked = look(job, lambda layer: Neurons(old.manifest.layer_experts[layer], whole), settings="slim")
    layers = tuple(
        tuple(Made.kept(expert, kept) for expert, kept in enumerate(_kept(job, looked, layer, width)))
        for layer in range(old.manifest.num_layers)
    )
    return planned(Plan(layers, width), old, {})


def _kept(job: Job, looked: Looked, layer: int, width: int) -> Sequence[Sequence[int]]:
    return neurons(looked.layer(layer)["given"].astype(np.float64), job.old.experts(layer).down, width)


def _taught(original: PackWeights, training: Training, job: Job) -> Compressed:
    settings: Settings = job.settings
    parts: tuple[Part, ...] = ("experts", "routers", "rest") if settings.every_weight else ("experts", "routers")

    def objective() -> Objective:
        teacher = Student(original, device=job.device, threads=job.threads)
        return Distilled(teacher, answers=settings.answers, hidden=settings.hidden)

    purpose = f"slim {original.manifest.model_id} {settings.answers} {settings.hidden}"
    return tuned(job, training, parts, objective, rank=settings.rank, purpose=purpose)


METHOD = Method(
    name="slim",
    title="all experts kept but narrower, cut in stages, taught by the original after each",
    source="SlimMoE, arXiv 2506.18349",
    changes=("width", "weights", "router"),
    needs=("answers", "training"),
    cost="training: the narrowed model forward and back and the original forward, stages x steps x tokens",
    loads="hf, vLLM",
    settings=Settings,
    compress=compress,
)
