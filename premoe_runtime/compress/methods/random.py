"""Experts drawn from a seed: what every method has to beat at equal bytes."""

from __future__ import annotations

from dataclasses import dataclass

from premoe_runtime.compress.config import width_of
from premoe_runtime.compress.counts import best_of_layers, kept_a_layer
from premoe_runtime.compress.method import Job, Method
from premoe_runtime.compress.plan import selection
from premoe_runtime.compress.result import Compressed, planned
from premoe_runtime.offline.profile.scores import random_scores


@dataclass(frozen=True, slots=True)
class Settings:
    """None."""


def compress(job: Job) -> Compressed:
    """The same number of experts in every layer, by the hash of seed, layer and expert."""
    manifest = job.old.manifest
    scores = random_scores((manifest.num_layers, manifest.num_experts), job.seed)
    kept = best_of_layers(job, scores, [kept_a_layer(job, count) for count in manifest.layer_experts])
    return planned(selection(kept, width_of(job.old.model)), job.old, {})


METHOD = Method(
    name="random",
    title="random experts, the baseline",
    source="-",
    changes=("count", "router"),
    needs=(),
    cost="none",
    loads="hf, vLLM",
    settings=Settings,
    compress=compress,
)
