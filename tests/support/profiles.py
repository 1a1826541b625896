"""Small profiles, pattern sets and a packed tiny model, for tests of the method."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from premoe_runtime.formats.arrays import F32
from premoe_runtime.formats.ids import WeightsId
from premoe_runtime.formats.manifest import RouterSpec
from premoe_runtime.formats.signature import SignatureSpec, unit
from premoe_runtime.offline.profile.accumulator import ProfileAccumulator
from premoe_runtime.offline.profile.record import Calibration, Profile
from premoe_runtime.offline.profile.state import ProfileState
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.storage import open_store
from support.tiny import tiny_checkpoint

LAYERS, EXPERTS, TOP_K = 2, 8, 2
ROUTER = RouterSpec(score="softmax", renormalise=True)
WEIGHTS = WeightsId("w" * 64)
ALPHABETS = {"digits": "0123456789+-=", "capitals": "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "vowels": "aeiou "}


def routed(logits: Tensor, top_k: int = TOP_K) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, chosen ids and renormalised weights, as a Qwen3-MoE router gives them."""
    best, ids = torch.softmax(logits, dim=-1).topk(top_k, dim=-1)
    return logits, ids, best / best.sum(dim=-1, keepdim=True)


def accumulated(batches: Sequence[Tensor], layers: int = LAYERS) -> ProfileState:
    """The state of one pass over batches of logits [T, E]; every layer sees them shifted by its number."""
    accumulator = ProfileAccumulator(layers, batches[0].shape[1], ROUTER)
    for batch in batches:
        for layer in range(layers):
            accumulator.add(layer, *routed(batch.roll(layer, dims=1)))
    return accumulator.state()


def logits(tokens: int, seed: int = 0, experts: int = EXPERTS) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, experts, generator=generator) * 3


def profile(
    task: str = "add", *, seed: int = 0, prompts: int = 40, weights_id: str = WEIGHTS, spread: float = 0.3
) -> Profile:
    """A profile of random routing whose signatures lie round one direction of their own."""
    draw = np.random.default_rng([seed, *task.encode()])
    centre = draw.random(EXPERTS)
    signatures: F32 = unit((centre + spread * draw.random((prompts, EXPERTS))).astype(np.float32))
    return Profile(
        weights_id=WeightsId(weights_id),
        task=task,
        top_k=TOP_K,
        layer_experts=(EXPERTS,) * LAYERS,
        calibration=(Calibration(digest=f"{task}{seed}", samples=prompts, tokens=64, answers="given"),),
        signature=SignatureSpec(layers=(0,), dimension=EXPERTS),
        state=accumulated([logits(64, seed=seed + sum(task.encode()))]),
        signatures=signatures,
        tool="test",
    )


def packed_model(folder: Path) -> str:
    """Pack a tiny random Qwen3-MoE (2 layers, 16 experts, top-4); returns the store's URL."""
    url = f"file://{folder / 'store'}"
    write_pack(open_source(str(tiny_checkpoint(folder))), open_store(url))
    return url


def write_examples(path: Path, task: str, count: int = 24, answer: str | None = "yes", seed: int = 0) -> Path:
    """Random prompts made of the task's alphabet."""
    draw = random.Random(f"{task} {seed}")
    rows = [{"prompt": "".join(draw.choices(ALPHABETS[task], k=16)), "answer": answer} for _ in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
