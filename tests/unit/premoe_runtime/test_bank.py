"""The bank's tables, mask rows and integrity check."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.oracle import experts_of, random_kept
from support.sources import MemorySource
from support.tiny import tiny_checkpoint

from premoe_runtime.formats.errors import Conflict, CorruptData, InvalidInput
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.residency.bank import ExpertBank
from premoe_runtime.residency.swap import bring, copy

LAYERS, EXPERTS = 2, 16


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> MemorySource:
    return MemorySource(tiny_checkpoint(tmp_path_factory.mktemp("bank"), "qwen3_moe"))


@pytest.fixture
def bank(source: MemorySource) -> ExpertBank:
    return ExpertBank(source.manifest(), slots=8, max_rows=4)


def full_row(*experts: int) -> dict[int, list[int]]:
    return {layer: list(experts) for layer in range(LAYERS)}


def wanted(*experts: int) -> frozenset[ExpertId]:
    return frozenset(ExpertId(layer, expert) for layer in range(LAYERS) for expert in experts)


def test_an_empty_bank_routes_nowhere(bank: ExpertBank) -> None:
    assert bank.resident() == frozenset()
    assert bank.slot_table() == [[-1] * 8] * LAYERS
    assert (bank.lut == bank.slots[0]).all()
    assert torch.isinf(bank.mask).all()
    assert bank.generation == 0
    bank.check_integrity()


def test_sizes(bank: ExpertBank, source: MemorySource) -> None:
    blob = source.manifest().layout.blob_bytes
    assert bank.device_bytes == LAYERS * 8 * blob
    assert bank.host_bytes % blob == 0
    assert bank.host_bytes <= 64 << 20


def test_views_are_the_blobs_fields(bank: ExpertBank, source: MemorySource) -> None:
    bring(bank, source, wanted(3, 7))
    slot = bank.slot_table()[1].index(7)
    fields = {field.name: field for field in source.manifest().layout.fields}
    for name, field in fields.items():
        view = bank.arenas[1].field(name)
        assert view.shape == (8, *field.shape)
        assert view.data_ptr() == bank.arenas[1].data.data_ptr() + field.offset
        expected = source.blobs[ExpertId(1, 7)][field.offset : field.offset + field.num_bytes]
        assert view[slot].contiguous().numpy().tobytes() == expected


def test_rows_see_only_what_is_resident(bank: ExpertBank, source: MemorySource) -> None:
    bank.set_row(2, full_row(1, 2, 3))
    assert not bank.row_ready(2)
    assert torch.isinf(bank.mask).all()
    bring(bank, source, wanted(1, 2))
    assert (bank.mask[:, 2] == 0).nonzero().tolist() == [[layer, e] for layer in range(LAYERS) for e in (1, 2)]
    assert not bank.row_ready(2)
    bring(bank, source, wanted(3))
    assert bank.row_ready(2)
    assert bank.row_experts(2) == wanted(1, 2, 3)
    bank.clear_row(2)
    assert not bank.row_ready(2)
    assert torch.isinf(bank.mask[:, 2]).all()
    bank.check_integrity()


def test_kept_may_come_as_array_tensor_or_mapping(bank: ExpertBank) -> None:
    kept = random_kept(1, LAYERS, EXPERTS, 5)[0]
    bank.set_row(0, kept)
    bank.set_row(1, kept.numpy())
    bank.set_row(2, {layer: np.flatnonzero(kept[layer].numpy()).tolist() for layer in range(LAYERS)})
    assert bank.row_experts(0) == bank.row_experts(1) == bank.row_experts(2) == experts_of(kept)


@pytest.mark.parametrize(
    ("row", "kept", "message"),
    [
        (4, full_row(1), "mask row 4 does not exist"),
        (-1, full_row(1), "mask row -1 does not exist"),
        (0, {0: [1]}, "keeps no expert in layer 1"),
        (0, np.ones((LAYERS, EXPERTS + 1), dtype=np.bool_), r"must be bool\[2, 16\], not \[2, 17\]"),
    ],
)
def test_rows_that_do_not_fit(bank: ExpertBank, row: int, kept: object, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        bank.set_row(row, kept)  # type: ignore[arg-type]


def test_publish_refuses_a_row_with_absent_experts_and_changes_nothing(bank: ExpertBank, source: MemorySource) -> None:
    plan = bank.plan(wanted(1, 2))
    bank.retire(plan)
    assert copy(bank, plan, source)
    lut = bank.lut.clone()
    with pytest.raises(Conflict, match="keeps layer 0 expert 9, which is not resident"):
        bank.publish(plan, {0: full_row(1, 9)})
    assert torch.equal(bank.lut, lut)
    assert bank.generation == 0
    assert bank.publish(plan, {0: full_row(1, 2)}) == 1
    bank.check_integrity()


def test_publish_before_the_copy_is_refused(bank: ExpertBank) -> None:
    plan = bank.plan(wanted(1))
    with pytest.raises(Conflict, match="not started"):
        bank.publish(plan)
    bank.retire(plan)
    with pytest.raises(Conflict, match="copy is not complete"):
        bank.publish(plan)
    assert bank.resident() == frozenset()


def test_two_swaps_never_share_a_slot(bank: ExpertBank, source: MemorySource) -> None:
    bring(bank, source, wanted(*range(8)))
    first, rival = bank.plan(wanted(8)), bank.plan(wanted(9))
    assert {(load.layer, load.slot) for load in first.loads} == {(load.layer, load.slot) for load in rival.loads}
    bank.retire(first)
    with pytest.raises(Conflict, match="another swap has slot"):
        bank.retire(rival)
    with pytest.raises(Conflict, match="under way already"):
        bank.retire(first)
    second = bank.plan(wanted(9))
    assert not {(load.layer, load.slot) for load in first.loads} & {(load.layer, load.slot) for load in second.loads}
    bank.retire(second)
    assert copy(bank, second, source)
    assert copy(bank, first, source)
    bank.publish(first)
    bank.publish(second)
    assert wanted(8, 9) <= bank.resident()
    bank.check_integrity()


def test_the_same_expert_is_not_brought_twice_at_once(bank: ExpertBank, source: MemorySource) -> None:
    first, rival = bank.plan(wanted(1)), bank.plan(wanted(1))
    bank.retire(first)
    with pytest.raises(Conflict, match="another swap is bringing layer 0 expert 1"):
        bank.plan(wanted(1))
    with pytest.raises(Conflict, match="another swap has slot"):
        bank.retire(rival)
    bank.abandon(first)
    bank.retire(bank.plan(wanted(1)))


def test_two_admissions_that_need_nothing_do_not_collide(bank: ExpertBank, source: MemorySource) -> None:
    bring(bank, source, wanted(1))
    first, second = bank.plan(wanted(1)), bank.plan(wanted(1))
    for plan in (first, second):
        bank.retire(plan)
    for plan in (first, second):
        assert copy(bank, plan, source)
        bank.publish(plan)
    assert bank.generation == 3


def test_a_stale_plan_is_refused(bank: ExpertBank, source: MemorySource) -> None:
    bring(bank, source, wanted(*range(8)))
    stale = bank.plan(wanted(12))
    bring(bank, source, wanted(13))
    with pytest.raises(Conflict, match="plan it again"):
        bank.retire(stale)
    assert not bank.resident() & wanted(12)
    bank.check_integrity()


def test_an_expert_in_use_is_never_retired(bank: ExpertBank, source: MemorySource) -> None:
    bring(bank, source, wanted(*range(8)), {0: full_row(0, 1)})
    plan = bank.plan(wanted(12))
    with pytest.raises(Conflict, match="in use by a running sequence"):
        bank.retire(plan, in_use=plan.victims)
    assert bank.resident() == wanted(*range(8))
    spared = bank.plan(wanted(12), pinned=plan.victims)
    assert not spared.victims & plan.victims


def test_recently_used_experts_stay(bank: ExpertBank, source: MemorySource) -> None:
    bring(bank, source, wanted(*range(8)))
    bank.touch(wanted(0, 1, 2, 3, 4, 5))
    assert bank.plan(wanted(12, 13)).victims == wanted(6, 7)


def test_unknown_experts_and_too_few_slots_are_refused(bank: ExpertBank, source: MemorySource) -> None:
    with pytest.raises(InvalidInput, match="the model has no layer 0 expert 16"):
        bank.plan(frozenset({ExpertId(0, 16)}))
    with pytest.raises(InvalidInput, match="at least 2"):
        ExpertBank(source.manifest(), slots=1)


def test_more_slots_than_experts_are_not_allocated(source: MemorySource) -> None:
    bank = ExpertBank(source.manifest(), slots=1000)
    assert set(bank.slots) == {EXPERTS}
    bring(bank, source, wanted(*range(EXPERTS)))
    bank.check_integrity()


def test_addresses_never_change(bank: ExpertBank, source: MemorySource) -> None:
    def addresses() -> list[int]:
        return [t.data_ptr() for t in (bank.lut, bank.mask, bank.sliced, *(arena.data for arena in bank.arenas))]

    before = addresses()
    for turn in range(4):
        bring(bank, source, wanted(*range(turn * 3, turn * 3 + 4)), {0: full_row(turn * 3)})
    assert addresses() == before


def test_integrity_finds_a_changed_byte(bank: ExpertBank, source: MemorySource) -> None:
    bring(bank, source, wanted(1, 2))
    slot = bank.slot_table()[1].index(2)
    bank.arenas[1].data[slot, 100] += 1
    with pytest.raises(CorruptData, match=f"slot {slot} does not hold layer 1 expert 2"):
        bank.check_integrity()


def test_integrity_finds_swapped_slots(bank: ExpertBank, source: MemorySource) -> None:
    bring(bank, source, wanted(1, 2))
    bank.lut[0, [1, 2]] = bank.lut[0, [2, 1]]
    with pytest.raises(CorruptData, match="look-up table differs"):
        bank.check_integrity()


def test_integrity_finds_a_mask_that_lets_an_absent_expert_in(bank: ExpertBank, source: MemorySource) -> None:
    bring(bank, source, wanted(1, 2), {0: full_row(1)})
    bank.mask[0, 0, 5] = 0
    with pytest.raises(CorruptData, match="mask table"):
        bank.check_integrity()
