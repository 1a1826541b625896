"""One static set of experts for all tasks, ranked by a score: plain expert pruning, as PreMoE without retrieval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from premoe_runtime.compress.config import width_of
from premoe_runtime.compress.counts import best_of_layers, kept_a_layer, refuse_groups
from premoe_runtime.compress.method import Job, Method, setting
from premoe_runtime.compress.outputs import differences
from premoe_runtime.compress.plan import selection
from premoe_runtime.compress.redundancy import GAMMA, merged
from premoe_runtime.compress.result import Compressed, planned
from premoe_runtime.formats.allocation import share
from premoe_runtime.formats.arrays import F64
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.offline.profile.measure import load_blocks, measure_profile
from premoe_runtime.offline.profile.scores import find, scores


@dataclass(frozen=True, slots=True)
class Settings:
    """What ranks experts, and whether layers share the budget."""

    score: str = setting("impact", "Score that ranks experts (`premoe scores`).")
    allocation: Literal["uniform", "shared", "grape"] = setting(
        "uniform",
        "uniform: equally many a layer. Packs and hf only: shared, by the score; grape, by how redundant layers are.",
    )


def compress(job: Job) -> Compressed:
    """The best experts by the mean over tasks of the score, each task's as shares of its total."""
    if job.settings.allocation != "uniform":
        refuse_groups(job, "layers of different counts do")
    values = pooled(job, job.settings.score)
    counts = _counts(job, values)
    kept = best_of_layers(job, values, counts)
    return planned(selection(kept, width_of(job.old.model)), job.old, {"kept": kept})


def _counts(job: Job, values: F64) -> list[int]:
    """Experts of every layer."""
    manifest, settings = job.old.manifest, job.settings
    counts = [kept_a_layer(job, count) for count in manifest.layer_experts]
    if settings.allocation == "grape":
        clusters = merged(*differences(job), sum(counts), manifest.top_k, GAMMA)
        return [len(layer) for layer in clusters]
    if settings.allocation == "shared":
        if not find(settings.score).comparable:
            raise InvalidInput(
                f"score {settings.score} does not compare layers; leave --allocation out, or rank by impact",
                reason="SCORE_NOT_COMPARABLE",
            )
        return [int(count) for count in share(values, sum(counts), manifest.top_k)]
    return counts


def pooled(job: Job, score: str) -> F64:
    """f64[L, E]: mean over tasks of a score as a share of the task's total; -inf for experts that a layer lacks."""
    manifest = job.old.manifest
    model = load_blocks(job.old.reader, threads=job.threads, device=job.device)
    job.report.stage("profiling", sum(map(len, job.data.values())))
    each = []
    for task, examples in job.data.items():
        profile = measure_profile(
            model,
            examples,
            task=task,
            where=task,
            scores=(score,),
            spool=job.work / "profile",
            advance=job.report.advance,
            passed_over=job.report.note,
        )
        found = np.where(manifest.exists, scores(profile.state, score), 0.0)
        each.append(found / max(float(np.abs(found).sum()), np.finfo(np.float64).tiny))
    return np.where(manifest.exists, np.mean(each, axis=0), -np.inf)


METHOD = Method(
    name="select",
    title="one static set of whole experts, ranked by a score",
    source="REAP, EASY-EP, PEU and others: docs/scores.md",
    changes=("count", "router"),
    needs=("answers",),
    cost="a profile: one pass over the data, a second one back for gradient scores",
    loads="hf, vLLM (with --allocation uniform)",
    settings=Settings,
    compress=compress,
)
