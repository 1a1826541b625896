"""A packed tiny model, patterns of it, and what stock transformers makes of an exported checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from premoe_runtime.engines.hf.model import load_slot_model
from premoe_runtime.formats.allocation import even_slots
from premoe_runtime.formats.arrays import Mask
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.choices import Allocation, Semantics
from premoe_runtime.formats.ids import WeightsId
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.formats.pattern import Pattern
from premoe_runtime.offline.export.cut import Cut, Spread, Target, cut, kept_by, usual_spread
from premoe_runtime.packs.reader import PackReader, open_pack
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.residency.swap import bring
from premoe_runtime.storage import open_store
from support.engines import prompt
from support.oracle import experts_of, stock_logits
from support.tiny import tiny_checkpoint

PROMPTS = torch.tensor([prompt(24, seed) for seed in range(3)])


def packed(folder: Path, family: str = "qwen3_moe", **overrides: Any) -> PackReader:
    return pack_of(tiny_checkpoint(folder / "checkpoint", family, **overrides), folder / "store")


def pack_of(checkpoint: Path, store: Path) -> PackReader:
    return open_pack(write_pack(open_source(str(checkpoint)), open_store(store.as_uri())).url)


def random_pattern(
    manifest: Manifest, *, semantics: Semantics = "selection", allocation: Allocation = "uniform", seed: int = 0
) -> Pattern:
    source = np.random.default_rng(seed)
    scores = np.where(manifest.exists, source.random(manifest.exists.shape), -np.inf)
    zeros = np.zeros(scores.shape)
    return Pattern.from_scores(
        scores,
        zeros,
        zeros.astype(np.int64),
        weights_id=WeightsId(manifest.weights_id),
        task="poems",
        kind="specialist",
        metric="peu",
        profiles=("p",),
        semantics=semantics,
        allocation=allocation,
    )


def restricted_logits(
    source: PackReader,
    kept: Mask,
    active: int,
    semantics: Semantics = "selection",
    prompts: torch.Tensor = PROMPTS,
    device: str = "cpu",
) -> torch.Tensor:
    """Of the whole pack's model, restricted to ``kept`` bool[L, E]."""
    counts = even_slots(int(kept.sum(axis=1).max()), kept.sum(axis=1).tolist(), "uniform")
    slots = load_slot_model(source, slots=counts, device=device)
    mask = torch.from_numpy(kept)
    bring(slots.store, slots.source, experts_of(mask), {0: kept}, semantics=semantics)
    with slots.steps(0, active):
        return stock_logits(slots.model, prompts)


def cut_to(
    source: PackReader,
    budget: str,
    *,
    spread: Spread | None = None,
    target: Target = "transformers",
    accept_rescale: bool = False,
    **pattern: object,
) -> Cut:
    manifest, parsed = source.manifest(), Budget.parse(budget)
    chosen = spread or usual_spread(manifest.router)
    found = random_pattern(manifest, **pattern)  # type: ignore[arg-type]
    return cut(
        found,
        kept_by(found, parsed, chosen, manifest),
        manifest,
        active=parsed.active,
        spread=chosen,
        target=target,
        accept_rescale=accept_rescale,
    )


def stock_model(folder: Path) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, experts_implementation="grouped_mm", output_loading_info=True
    )
    found, info = model
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return found.eval().requires_grad_(False)
