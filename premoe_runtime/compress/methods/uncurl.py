"""Experts that a task's tokens want alike become one: UNCURL, arXiv 2409.01483.

Of the paper only the abstract was at hand, so the likeness is ours, chosen on both test models at 50 % and 25 %: that
of the logits' correlation alone merges experts that do much of the work with each other and loses half of what this
one keeps. Merging two experts of use u and v moves the layer's output by about u v / (u + v) (1 - correlation), which
is 0 for experts that nobody uses or that are always wanted together; ``likeness`` falls with it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np

from premoe_runtime.compress.alignment import merged_experts
from premoe_runtime.compress.clusters import spectral
from premoe_runtime.compress.config import width_of
from premoe_runtime.compress.counts import kept_a_layer, refuse_groups
from premoe_runtime.compress.look import Arrays, Looked, Seen, look
from premoe_runtime.compress.method import Job, Method, setting
from premoe_runtime.compress.plan import Made, Plan
from premoe_runtime.compress.result import Compressed
from premoe_runtime.compress.share import Share
from premoe_runtime.compress.threshold import Tried, parted, tried
from premoe_runtime.compress.use import Use
from premoe_runtime.formats.arrays import F64
from premoe_runtime.formats.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Settings:
    """Whether to look for the factor beyond which quality falls, and what falling is."""

    find: bool = setting(
        False,
        "Try 2, 4, 8 … times fewer experts on every fourth example, held out, and write the last that keeps --margin "
        "(--budget does not count).",
    )
    margin: float = setting(0.1, "With --find: how far the held-out loss may rise, nats per token (95 % interval).")


class Wanting:
    """What one layer's router wants, the mean over tasks: moments of its logits, and how much each expert is used."""

    def __init__(self, experts: int, tasks: int) -> None:
        self._sum, self._product = np.zeros((tasks, experts)), np.zeros((tasks, experts, experts))
        self._use = Use(experts, tasks)

    def see(self, seen: Seen) -> None:
        self._use.see(seen)
        for task in sorted(set(seen.tasks.tolist())):
            own = seen.tasks == task
            logits = seen.logits[own].double().cpu().numpy()
            self._sum[task] += logits.sum(axis=0)
            self._product[task] += logits.T @ logits

    def result(self) -> Arrays:
        tokens = np.maximum(self._use.tokens, 1)[:, None]
        mean, second = (self._sum / tokens).mean(axis=0), (self._product / tokens[..., None]).mean(axis=0)
        return {"covariance": second - np.outer(mean, mean), "use": self._use.mean()}


def compress(job: Job) -> Compressed:
    """Clusters of experts by what the data's tokens want, aligned and merged when their layer is written."""
    refuse_groups(job, "clusters do")
    if not job.settings.find:
        return _merged(job, _looked(job), job.share)
    if not job.settings.margin >= 0:
        raise InvalidInput(f"--margin {job.settings.margin} is no rise of a loss; give 0 or more", reason="MARGIN")
    teach, judge = parted(job)
    looked = _looked(teach)
    least = min(count // job.old.manifest.top_k for count in job.old.manifest.layer_experts)
    factors = [2**power for power in range(1, least.bit_length()) if 2**power <= least]
    found = list(tried(judge, lambda share: _merged(job, looked, share), factors, job.settings.margin))
    factor = max((one.factor for one in found if one.held), default=1)
    return _reported(_merged(job, looked, Share(1 / factor)), factor, found)


def _reported(new: Compressed, factor: int, found: list[Tried]) -> Compressed:
    return replace(new, facts={**new.facts, "factor": factor, "tried": [asdict(one) for one in found]})


def _looked(job: Job) -> Looked:
    experts, tasks = job.old.manifest.layer_experts, len(job.data)
    return look(job, lambda layer: Wanting(experts[layer], tasks), settings="wanting")


def _merged(job: Job, looked: Looked, share: Share) -> Compressed:
    manifest = job.old.manifest
    job = replace(job, share=share)
    layers = []
    for layer, count in enumerate(manifest.layer_experts):
        seen = looked.layer(layer)
        covariance, use = (np.asarray(seen[name], np.float64) for name in ("covariance", "use"))
        layers.append(clustered(covariance, use, kept_a_layer(job, count)))
    plan = Plan(tuple(layers), width_of(job.old.model))
    clusters = [[made.members.tolist() for made in layer] for layer in plan.layers]
    return merged_experts(plan, job.old, {"clusters": clusters})


def clustered(covariance: F64, use: F64, count: int) -> tuple[Made, ...]:
    """``count`` new experts of a layer: clusters by first member, each its most used expert first, shares by use."""
    labels = np.arange(len(use)) if count == len(use) else spectral(likeness(covariance, use), count)
    return tuple(Made.merged(np.flatnonzero(labels == label), use) for label in range(count))


def likeness(covariance: F64, use: F64) -> F64:
    """f64[E, E] in (0, 1]: exp(-cost / mean cost) of merging two experts, by their logits' covariance and their use."""
    deviation = np.sqrt(np.maximum(np.diag(covariance), np.finfo(np.float64).tiny))
    apart = 1 - np.clip(covariance / np.outer(deviation, deviation), -1, 1)
    both = use[:, None] + use[None, :]
    cost = np.outer(use, use) / np.where(both > 0, both, 1.0) * apart
    np.fill_diagonal(cost, 0.0)
    mean = cost.sum() / max(cost.size - len(use), 1)
    return np.asarray(np.exp(-cost / mean)) if mean > 0 else np.ones_like(cost)


METHOD = Method(
    name="uncurl",
    title="experts that a task's tokens want alike, merged into one",
    source="UNCURL, arXiv 2409.01483",
    changes=("count", "weights", "router"),
    needs=("answers",),
    cost="one pass over the data, and an exact matching of neurons for every expert; one layer in memory",
    loads="hf, vLLM",
    settings=Settings,
    compress=compress,
)
