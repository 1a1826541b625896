"""Slots of vLLM against unchanged vLLM with all experts, its routers masked from outside: log probabilities equal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from support import exports
from support.oracle import random_kept
from support.tiny import tiny_checkpoint
from support.vllm_engines import (
    ADDRESSES,
    CHECK,
    WEIGHT_BYTES,
    Answer,
    Kept,
    Masked,
    Request,
    bring,
    generate,
    run,
    slots,
    stock,
)
from support.vllm_models import AMX, MODELS, NUMBERS, OTHERS, Model, checkpoint_of

from premoe_runtime.engines.vllm.coverage import FAMILIES as COVERED
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.offline.export.writer import export
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.storage import open_store

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

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


def in_groups(manifest: Manifest, rows: int) -> list[Kept]:
    """As many of every group, and so many that two groups fill top-k: elsewhere vLLM's own router chooses what is
    masked.
    """
    groups, each = manifest.router.groups, manifest.num_experts // manifest.router.groups
    least = -(-manifest.top_k // manifest.router.chosen_groups)
    found: list[Kept] = []
    for row in range(rows):
        kept = random_kept(manifest.num_layers, groups, each, max(2, least) + row % 2, seed=row).flatten(1)
        found.append([layer.nonzero().flatten().tolist() for layer in kept])
    return found


def union(some: list[Kept], layer: int) -> set[int]:
    return {expert for kept in some for expert in kept[layer]}


def worst(ours: list[Answer], theirs: list[Answer]) -> float:
    return max(mine.difference(other) for mine, other in zip(ours, theirs, strict=True))


def of_rows(answers: dict[int, list[Answer]], rows: list[int]) -> list[Answer]:
    """Of a mixed batch: request i as it was answered where the whole batch was under its row."""
    return [answers[row][number] for number, row in enumerate(rows)]


def three_of(some: list[Kept], manifest: Manifest) -> list[int]:
    """Slots for three patterns of four, the first ones or the last ones: layers differ, and all four have no room."""
    return [max(len(union(three, layer)) for three in (some[:3], some[1:])) for layer in range(manifest.num_layers)]


def mixed(asked: list[list[int]], rows: list[int]) -> dict[str, Any]:
    return generate([Request(tokens, row) for tokens, row in zip(asked, rows, strict=True)])


BEFORE, AFTER = [number % 3 for number in range(9)], [(3, 1, 2)[number % 3] for number in range(9)]
"""Rows of the requests, before a fourth pattern takes the place of the first, and then."""


@dataclass
class Case:
    """One model and what is asked of it: ``jobs`` of both sides, and their answers once ``run`` has come back.

    ``expected``: log probabilities that our engine hf has for a stock answer, where it is held against that.
    """

    manifest: Manifest
    some: list[Kept]
    jobs: dict[str, dict[str, Any]]
    expected: Callable[[Answer], torch.Tensor] | None = None
    slots: list[Any] = field(default_factory=list)
    stock: list[Masked] = field(default_factory=list)

    @property
    def masked(self) -> dict[int, list[Answer]]:
        return {row: self.stock[row].answers for row in range(len(self.some))}


def fixture_case(folder: Path) -> Case:
    pack, manifest = packed(FIXTURE, folder)
    some, asked = patterns(manifest, 4, 14), prompts(512)
    first, others = (
        [sorted(union(three, layer)) for layer in range(manifest.num_layers)] for three in (some[:3], some[1:3])
    )
    stages = [
        bring(dict(enumerate(some[:3]))),
        ADDRESSES,
        WEIGHT_BYTES,
        mixed(asked, BEFORE),
        # A fourth pattern has no room beside the three; nothing is written for it.
        bring({3: some[3]}, first),
        CHECK,
        # While two of the three decode, the fourth comes in over the first.
        generate(
            [Request(asked[number], row) for number, row in enumerate(BEFORE) if row],
            after=6,
            swap=bring({3: some[3]}, others),
        ),
        CHECK,
        ADDRESSES,
        mixed(asked, AFTER),
    ]
    batches: list[tuple[Kept | None, list[list[int]]]] = [(kept, asked) for kept in some]
    jobs = {"slots": slots(pack, three_of(some, manifest), stages), "stock": stock(FIXTURE, [*batches, (None, asked)])}
    return Case(manifest, some, jobs)


def random_case(
    folder: Path, checkpoint: Path, dtype: str = "float32", *, fewer: bool = True, alike: bool = False
) -> Case:
    """``alike``: batches are under one pattern each, on both sides: kernels for number formats add up in an order that
    depends on how many tokens an expert has.
    """
    pack, manifest = packed(checkpoint, folder / "store")
    some, asked = patterns(manifest, 3, 5) if fewer else in_groups(manifest, 3), prompts()
    counts = [len(union(some, layer)) for layer in range(manifest.num_layers)]
    batches = [[row] * len(asked) for row in range(3)] if alike else [BEFORE]
    stages = [bring(dict(enumerate(some))), CHECK, *(mixed(asked, rows) for rows in batches)]
    jobs = {
        "slots": slots(pack, counts, stages, dtype=dtype),
        "stock": stock(checkpoint, [(kept, asked) for kept in some], dtype=dtype),
    }
    return Case(manifest, some, jobs)


def exported_case(folder: Path) -> Case:
    """Half of the experts as ``premoe export`` writes them, for vLLM without plug-in."""
    source = exports.packed(folder, "qwen3_moe", head_dim=32)
    manifest = source.manifest()
    chosen, asked = exports.cut_to(source, f"{manifest.top_k}/8"), prompts()[0]
    export(source, chosen, str(folder / "cut"))

    def expected(answer: Answer) -> torch.Tensor:
        whole = torch.tensor([[*asked, *answer.tokens]])
        logits = exports.restricted_logits(source, chosen.kept, manifest.top_k, prompts=whole)[0]
        return torch.log_softmax(logits[len(asked) - 1 : -1], dim=-1)

    return Case(manifest, [], {"stock": stock(folder / "cut", [(None, [asked])])}, expected)


def other_case(folder: Path, model: Model) -> Case:
    pack, manifest = packed(checkpoint_of(model, folder), folder / "store")
    return Case(manifest, [], {"slots": slots(pack, 4, [CHECK])})


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """Of the fixture and of every model, answered."""
    found = {"fixture": fixture_case(tmp_path_factory.mktemp("fixture"))}
    for name, model in MODELS.items():
        folder = tmp_path_factory.mktemp(model.family)
        found[name] = random_case(folder, checkpoint_of(model, folder), model.dtype, fewer=model.fewer)
    for name, make in NUMBERS.items() if AMX else ():
        folder = tmp_path_factory.mktemp("numbers")
        found[name] = random_case(folder, make(folder), "bfloat16", fewer=False, alike=True)
    for name, (model, _) in OTHERS.items():
        found[name] = other_case(tmp_path_factory.mktemp("other"), model)
    found["exported"] = exported_case(tmp_path_factory.mktemp("exported"))
    answers = run({f"{name}: {side}": job for name, case in found.items() for side, job in case.jobs.items()})
    for name, case in found.items():
        case.slots, case.stock = (answers.get(f"{name}: {side}", []) for side in ("slots", "stock"))
    return found


def test_slots_equal_masked_stock_vllm_in_mixed_batches_and_after_a_swap(cases: dict[str, Case]) -> None:
    case = cases["fixture"]
    manifest, counts = case.manifest, case.jobs["slots"]["slots"]
    _, addresses, held, mixed, refused, _, during, _, still, swapped = case.slots
    assert len(set(counts)) > 1
    assert max(counts) < manifest.num_experts
    assert all(each.changed >= 0.3 for each in case.stock[:4])
    assert worst(mixed, of_rows(case.masked, BEFORE)) == 0
    assert worst(swapped, of_rows(case.masked, AFTER)) == 0
    assert "slots" in refused["error"]
    assert still == addresses
    # Those that decoded beside the swap made the tokens that they made before it.
    assert [each.tokens for each in during] == [mixed[number].tokens for number, row in enumerate(BEFORE) if row]
    assert held * manifest.num_experts * manifest.num_layers == sum(counts) * _expert_bytes(manifest)
    # The masks did something.
    assert worst(mixed, case.stock[4].answers) > 0.1


def _expert_bytes(manifest: Manifest) -> int:
    """Of all experts in float32."""
    numbers = sum(torch.Size(field.shape).numel() for field in manifest.layout.fields)
    return 4 * numbers * manifest.num_experts * manifest.num_layers


needs_amx = pytest.mark.skipif(not AMX, reason="vLLM's kernels for number formats need a CPU with AMX")


@pytest.mark.parametrize("name", [*MODELS, *(pytest.param(name, marks=needs_amx) for name in NUMBERS)])
def test_every_covered_family_and_number_format_equals_masked_stock_vllm(cases: dict[str, Case], name: str) -> None:
    case = cases[name]
    table, _, *batches = case.slots
    assert isinstance(table, list), table
    assert all(each.changed >= 0.3 for each in case.stock)
    if len(batches) == 1:
        assert worst(batches[0], of_rows(case.masked, BEFORE)) == 0
    else:
        assert [worst(batch, case.masked[row]) for row, batch in enumerate(batches)] == [0, 0, 0]


def test_every_covered_family_is_among_them() -> None:
    assert {model.family for model in MODELS.values()} == set(COVERED)


@pytest.mark.parametrize("name", OTHERS)
def test_a_config_that_vllm_reads_otherwise_is_refused_in_one_line(cases: dict[str, Case], name: str) -> None:
    (answer,) = cases[name].slots
    assert OTHERS[name][1] in answer["error"]
    assert "\n" not in answer["error"]


def test_an_exported_checkpoint_is_loaded_by_stock_vllm(cases: dict[str, Case]) -> None:
    """Its answer is ours: greedy tokens, and log probabilities within what docs/export.md says of transformers."""
    case = cases["exported"]
    (answer,) = case.stock[0].answers
    assert case.expected is not None
    found = case.expected(answer)
    assert found.argmax(-1).tolist() == answer.tokens
    theirs = [(place, int(token), value) for place, at in enumerate(answer.logprobs) for token, value in at.items()]
    places, tokens, values = zip(*theirs, strict=True)
    torch.testing.assert_close(torch.tensor(values), found[list(places), list(tokens)], rtol=1e-5, atol=1e-5)


def test_compiled_slots_equal_compiled_masks_over_all_experts(tmp_path: Path) -> None:
    """What is compiled looks into no mask of ours from outside, so the other side is our router over all experts."""
    pack, manifest = packed(tiny_checkpoint(tmp_path, head_dim=32), tmp_path / "store")
    some, asked = patterns(manifest, 4, 5), prompts()
    others = [sorted(union(some[1:3], layer)) for layer in range(manifest.num_layers)]
    batch = mixed(asked, BEFORE)
    stages = [bring(dict(enumerate(some[:3]))), batch, bring({0: some[3]}, others), CHECK, batch]
    counts = {"narrow": three_of(some, manifest), "whole": list(manifest.layer_experts)}
    found = run({name: slots(pack, count, stages, compiled=True) for name, count in counts.items()})
    for stage in (1, 4):
        assert worst(found["narrow"][stage], found["whole"][stage]) == 0
    assert worst(found["narrow"][1], found["narrow"][4]) > 0.01
