"""Slots of vLLM against unchanged vLLM with all experts, its routers masked from outside: log probabilities equal."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.oracle import random_kept
from support.vllm_engines import (
    ADDRESSES,
    CHECK,
    WEIGHT_BYTES,
    Answer,
    Kept,
    Request,
    bring,
    generate,
    slots,
    stock,
)

from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.storage import open_store

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

FIXTURE = Path(__file__).parents[1] / "fixtures" / "tiny-moe"
LENGTHS = [8 + 3 * number for number in range(9)]


def packed(checkpoint: Path, folder: Path) -> tuple[str, Manifest]:
    result = write_pack(open_source(str(checkpoint)), open_store(folder.as_uri()))
    return result.url, result.manifest


def prompts(vocabulary: int = 256) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(5, vocabulary, (length,), generator=generator).tolist() for length in LENGTHS]


def patterns(manifest: Manifest, rows: int, least: int) -> list[Kept]:
    """Sizes that differ from layer to layer; the last pattern keeps fewer than top-k in the last layer."""
    found: list[Kept] = []
    for row in range(rows):
        kept = random_kept(1, manifest.num_layers, manifest.num_experts, least + 3, seed=row)[0]
        lists = [kept[layer].nonzero().flatten().tolist()[: least + layer % 3] for layer in range(len(kept))]
        if row == rows - 1:
            lists[-1] = lists[-1][: manifest.top_k - 1]
        found.append(lists)
    return found


def union(some: list[Kept], layer: int) -> set[int]:
    return {expert for kept in some for expert in kept[layer]}


def worst(ours: list[Answer], theirs: list[Answer]) -> float:
    return max(mine.difference(other) for mine, other in zip(ours, theirs, strict=True))


def of_rows(answers: dict[int, list[Answer]], rows: list[int]) -> list[Answer]:
    """Of a mixed batch: request i as it was answered where the whole batch was under its row."""
    return [answers[row][number] for number, row in enumerate(rows)]


def test_slots_equal_masked_stock_vllm_in_mixed_batches_and_after_a_swap(tmp_path: Path) -> None:
    pack, manifest = packed(FIXTURE, tmp_path)
    some, asked = patterns(manifest, 4, 14), prompts(512)
    before, after = [number % 3 for number in range(9)], [(3, 1, 2)[number % 3] for number in range(9)]
    # What three patterns need at most, so that layers differ and four have no room.
    counts = [max(len(union(three, layer)) for three in (some[:3], some[1:])) for layer in range(manifest.num_layers)]
    assert len(set(counts)) > 1
    assert max(counts) < manifest.num_experts
    swap = bring({3: some[3]}, [sorted(union(some[1:3], layer)) for layer in range(manifest.num_layers)])
    stages = [
        bring({row: some[row] for row in range(3)}),
        ADDRESSES,
        WEIGHT_BYTES,
        generate([Request(tokens, row) for tokens, row in zip(asked, before, strict=True)]),
        # A fourth pattern has no room beside the three; nothing is written for it.
        bring({3: some[3]}, [sorted(union(some[:3], layer)) for layer in range(manifest.num_layers)]),
        CHECK,
        # While two of the three decode, the fourth comes in over the first.
        generate([Request(asked[n], before[n]) for n in range(9) if before[n]], after=6, swap=swap),
        CHECK,
        ADDRESSES,
        generate([Request(tokens, row) for tokens, row in zip(asked, after, strict=True)]),
    ]
    _, addresses, held, mixed, refused, _, during, _, still, swapped = slots(pack, counts, stages)
    masked = stock(FIXTURE, [(kept, asked) for kept in some] + [(None, asked)])
    answers = {row: masked[row].answers for row in range(4)}
    assert all(each.changed >= 0.3 for each in masked[:4])
    assert worst(mixed, of_rows(answers, before)) == 0
    assert worst(swapped, of_rows(answers, after)) == 0
    assert "slots" in refused["error"]
    assert still == addresses
    # Those that decoded beside the swap made the tokens that they made before it.
    assert [each.tokens for each in during] == [mixed[n].tokens for n in range(9) if before[n]]
    assert held * manifest.num_experts * manifest.num_layers == sum(counts) * _expert_bytes(manifest)
    # The masks did something.
    assert worst(mixed, masked[4].answers) > 0.1


def _expert_bytes(manifest: Manifest) -> int:
    """Of all experts in float32."""
    numbers = sum(torch.Size(field.shape).numel() for field in manifest.layout.fields)
    return 4 * numbers * manifest.num_experts * manifest.num_layers
