"""The most redundant pair of experts anywhere in the model becomes one, again and again: GRAPE, arXiv 2604.06542.

Left open by what was at hand of the paper, and chosen by accuracy on both test models at 50 and 25 %: experts are
compared by the squared distance of their outputs, as a share of their layer's, which makes layers comparable (CKA is
level with it, better on one model and worse on the other); pairs weigh by use, without which experts that do the work
are merged as readily as idle ones, and little is left; of a cluster the most used expert stays as it is, since experts
that were trained apart have no mean that does the work of either (``--merge mean`` aligns and averages them).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from premoe_runtime.compress.alignment import merged_experts
from premoe_runtime.compress.config import width_of
from premoe_runtime.compress.counts import kept_a_layer, refuse_groups
from premoe_runtime.compress.method import Job, Method, setting
from premoe_runtime.compress.outputs import TOKENS, differences
from premoe_runtime.compress.plan import Made, Plan
from premoe_runtime.compress.redundancy import GAMMA, merged
from premoe_runtime.compress.result import Compressed
from premoe_runtime.formats.arrays import F64, I64
from premoe_runtime.formats.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Settings:
    """What likeness is, and how uneven layers may become."""

    likeness: Literal["mse", "cka"] = setting("mse", "Of experts' outputs: mse, their distance, or cka, their form.")
    gamma: float = setting(
        GAMMA, "A layer waits while the entropy of its clusters is below this part of the whole one's."
    )
    weighted: bool = setting(True, "Weigh pairs by how much their experts are used.")
    merge: Literal["keep", "mean"] = setting("keep", "keep: the most used one stays; mean: the mean of all, by use.")
    tokens: int = setting(TOKENS, "Inputs of each layer that all its experts are compared on.")


def compress(job: Job) -> Compressed:
    """Clusters of experts, merged when their layer is written."""
    _refuse(job)
    settings, total = job.settings, sum(kept_a_layer(job, count) for count in job.old.manifest.layer_experts)
    apart, use = differences(job, settings.likeness, settings.tokens)
    clusters = merged(apart, use if settings.weighted else None, total, job.old.model.top_k, settings.gamma)
    layers = tuple(
        tuple(_made(np.array(members, np.int64), row, settings.merge) for members in layer)
        for layer, row in zip(clusters, use, strict=True)
    )
    plan = Plan(layers, width_of(job.old.model))
    facts = {"clusters": [[list(members) for members in layer] for layer in clusters]}
    return merged_experts(plan, job.old, facts)


def _refuse(job: Job) -> None:
    """Raise InvalidInput for what cannot be merged or measured."""
    settings = job.settings
    refuse_groups(job, "clusters do")
    if not 0 <= settings.gamma <= 1:
        raise InvalidInput(f"--gamma {settings.gamma} is no part of an entropy; give 0 to 1", reason="SETTING_INVALID")
    if settings.tokens < 2:
        raise InvalidInput(f"--tokens {settings.tokens} compare nothing; give 2 or more", reason="SETTING_INVALID")


def _made(members: I64, use: F64, merge: str) -> Made:
    made = Made.merged(members, use)
    return Made.kept(int(made.members[0])) if merge == "keep" else made


METHOD = Method(
    name="grape",
    title="the most alike experts anywhere in the model, merged pair by pair",
    source="GRAPE, arXiv 2604.06542",
    changes=("count", "weights", "router"),
    needs=("answers",),
    cost="one pass over the data, and all experts of a layer on --tokens inputs",
    loads="hf: layers have different numbers of experts",
    settings=Settings,
    compress=compress,
)
