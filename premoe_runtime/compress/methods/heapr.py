"""Single neurons pruned by how much of the loss they carry: atomic experts, HEAPr.

A neuron k of an expert gives a_k d_k, its activation times its column of ``down``. To second order its loss costs
s_k = ½ E[a_k²] · d_kᵀ G d_k with G = E[g gᵀ], g = ∂loss/∂(the expert's own output), the combine weight included. The
paper keeps G, H x H an expert; but d_kᵀ G d_k = E[(g · d_k)²], so g @ down, squared and summed as tokens pass, is the
same in I numbers an expert.

Left open there and chosen here, by accuracy on tiny-moe at 50 and 25 % of the bytes, tiny-moe-natural being asked
afterwards:
- means are over an expert's own tokens, times their number: the loss of all tokens, and nothing for an unused expert;
- the margin of the answers is differentiated, not their cross-entropy, which is flat where the model is sure;
- tasks count alike, and a neuron counts by the root of s_k as a share of its task's, or a task with few large neurons
  takes what the others need;
- one width for all, by ``--experts``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from premoe_runtime.compress.config import resized, width_multiple, width_of
from premoe_runtime.compress.counts import least_experts, refuse_groups
from premoe_runtime.compress.look import Arrays, Seen, look
from premoe_runtime.compress.method import Job, Method, setting
from premoe_runtime.compress.narrowing import Limits, Shape, narrowed, shape_of, shapes, worth
from premoe_runtime.compress.result import Compressed, planned
from premoe_runtime.compress.share import Share
from premoe_runtime.formats.arrays import F64
from premoe_runtime.formats.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Settings:
    """How what stays is divided into experts and neurons of each."""

    experts: str = setting(
        "auto", "Part of every layer's experts that stays, such as 50%; auto: the one that loses the least."
    )
    multiple: int = setting(
        0, "Widths are multiples of this; 0: what hf's kernel needs. vLLM's kernels may want more (64 or 128)."
    )
    objective: Literal["gradient", "loss"] = setting(
        "gradient", "What is differentiated: gradient, the answers' margin, or loss."
    )
    shared: bool = setting(False, "Share the experts over the layers by what they are worth: packs and hf only.")


class Atoms:
    """By task, over each expert's own tokens: Σ a² and Σ (g · d)², f64[K, E, I], and how many these are, [K, E]."""

    def __init__(self, tasks: int, experts: int, width: int) -> None:
        self._square, self._along = np.zeros((2, tasks, experts, width))
        self._count = np.zeros((tasks, experts))

    def see(self, seen: Seen) -> None:
        assert seen.gradient is not None, "the way back has gradients"
        for expert in range(self._count.shape[1]):
            tokens, weights = seen.of(expert)
            if not len(tokens):
                continue
            activations = seen.activations(expert, seen.inputs[tokens]).double().square()
            along = (
                seen.back(expert, seen.gradient[tokens] * weights[:, None].to(seen.gradient.dtype)).double().square()
            )
            tasks = seen.tasks[tokens]
            for task in set(tasks.tolist()):
                own = tasks == task
                self._square[task, expert] += activations[own].sum(dim=0).cpu().numpy()
                self._along[task, expert] += along[own].sum(dim=0).cpu().numpy()
                self._count[task, expert] += int(own.sum())

    def result(self) -> Arrays:
        return {"square": self._square, "along": self._along, "count": self._count}


def atoms(job: Job) -> list[F64]:
    """f64[E, I] of every layer: what neurons are worth: mean over tasks of the root of s as a share of the task's."""
    counts, width, objective = job.old.manifest.layer_experts, width_of(job.old.model), job.settings.objective
    looked = look(
        job, lambda layer: Atoms(len(job.data), counts[layer], width), settings="heapr atoms", objective=objective
    )
    found = [_roots(looked.layer(layer)) for layer in range(len(counts))]
    totals = np.sum([layer.sum(axis=(1, 2)) for layer in found], axis=0)
    return [np.asarray((layer / np.maximum(totals, 1e-300)[:, None, None]).mean(axis=0)) for layer in found]


def _roots(seen: Mapping[str, Any]) -> F64:
    """f64[K, E, I]: the root of ½ Σ a² · mean (g · d)²."""
    costs = 0.5 * seen["square"] * seen["along"] / np.maximum(seen["count"], 1)[..., None]
    return np.asarray(np.sqrt(costs), np.float64)


def compress(job: Job) -> Compressed:
    """The neurons worth the most, in experts of one width."""
    limits, candidates = _limits(job), _candidates(job)
    values, shared = atoms(job), job.settings.shared
    each = [worth(values, shape, limits, shared=shared) for shape in candidates]
    best = int(np.argmax(each))
    shape, lost = candidates[best], 1 - each[best] / max(sum(float(one.sum()) for one in values), 1e-300)
    plan = narrowed(values, shape, limits, shared=shared)
    job.report.note(f"{'/'.join(map(str, sorted(set(plan.experts))))} experts a layer of {shape.width} neurons each")
    return planned(plan, job.old, {"lost": lost, "kept": [[int(one.members[0]) for one in row] for row in plan.layers]})


def _limits(job: Job) -> Limits:
    model = job.old.model
    multiple = job.settings.multiple or width_multiple(job.old.manifest.dtype)
    if multiple < 0:
        raise InvalidInput(f"--multiple {multiple} is no number of neurons; give 1 or more", reason="SETTING_INVALID")
    if job.settings.shared:
        refuse_groups(job, "layers of different counts do")
    return Limits(multiple, least_experts(model), model.router.groups)


def _candidates(job: Job) -> tuple[Shape, ...]:
    """The shapes that come into question, before anything is computed: the model must be able to take them."""
    old, limits, text = job.old, _limits(job), job.settings.experts
    experts, width = old.manifest.layer_experts, width_of(old.model)
    if text == "auto":
        found = shapes(experts, width, job.share, limits)
    else:
        try:
            part = Share.parse(text)
        except InvalidInput as error:
            raise InvalidInput(f"--experts: {error}; or auto", reason="SETTING_INVALID") from None
        found = (shape_of(experts, width, job.share, part, limits),)
    narrow = min(found, key=lambda shape: shape.width)
    resized(old.config, old.model, experts=max(narrow.counts), width=narrow.width, top_k=old.model.top_k)
    return found


METHOD = Method(
    name="heapr",
    title="single neurons by the second-order loss of their output, in fewer or narrower experts",
    source="HEAPr, arXiv 2509.22299",
    changes=("count", "width", "router"),
    needs=("answers", "a backward pass"),
    cost="one pass over the data and one back, a block in memory; one layer's neurons, 16 bytes each, beside it",
    loads="hf, vLLM where its kernels take the width (--multiple; not with --shared)",
    settings=Settings,
    compress=compress,
)
