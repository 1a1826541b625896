"""The three-step swap: what moves, what a fault or a cancellation leaves behind, the host tier."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from support.sources import MemorySource
from support.tiny import tiny_checkpoint

from premoe_runtime.formats.errors import Conflict, CorruptData, Exhausted, Unavailable
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.residency.bank import ExpertBank
from premoe_runtime.residency.host_tier import HostTier
from premoe_runtime.residency.swap import bring, copy, prefetch, publish, retire
from premoe_runtime.serving.swapping import copy_threads

LAYERS, EXPERTS, SLOTS = 2, 16, 8


@pytest.fixture
def source(tmp_path: Path) -> MemorySource:
    return MemorySource(tiny_checkpoint(tmp_path, "qwen3_moe"))


def bank_of(source: MemorySource, *, host_blobs: int = 2 * EXPERTS, dtype: torch.dtype | None = None) -> ExpertBank:
    blob = source.manifest().layout.blob_bytes
    return ExpertBank(source.manifest(), slots=SLOTS, host_bytes=host_blobs * blob, dtype=dtype)


def wanted(*experts: int) -> frozenset[ExpertId]:
    return frozenset(ExpertId(layer, expert) for layer in range(LAYERS) for expert in experts)


def test_only_missing_blobs_are_read(source: MemorySource) -> None:
    bank = bank_of(source)
    bring(bank, source, wanted(0, 1, 2, 3))
    assert sorted(source.blobs_read) == sorted(wanted(0, 1, 2, 3))
    bring(bank, source, wanted(2, 3, 4, 5))
    assert sorted(source.blobs_read) == sorted(wanted(0, 1, 2, 3, 4, 5))


def test_a_blob_that_comes_back_is_taken_from_the_host_tier(source: MemorySource) -> None:
    bank = bank_of(source)
    bring(bank, source, wanted(*range(8)))
    bring(bank, source, wanted(*range(8, 16)))
    read = len(source.blobs_read)
    bring(bank, source, wanted(*range(8)))
    assert len(source.blobs_read) == read
    bank.check_integrity()


@pytest.mark.parametrize("host_blobs", [2, 3, 5])
def test_a_host_tier_smaller_than_the_swap_passes_it_through(source: MemorySource, host_blobs: int) -> None:
    bank = bank_of(source, host_blobs=host_blobs)
    bring(bank, source, wanted(*range(8)))
    assert bank.resident() == wanted(*range(8))
    assert len(bank.host.experts()) == host_blobs
    bank.check_integrity()


def test_victims_are_absent_from_retire_to_publish(source: MemorySource) -> None:
    bank = bank_of(source)
    bring(bank, source, wanted(*range(8)), {0: {0: range(8), 1: range(8)}})
    plan = bank.plan(wanted(12))
    retire(bank, plan)
    assert not bank.resident() & plan.victims
    assert all(int(bank.lut[victim]) == SLOTS for victim in plan.victims)
    assert all(torch.isinf(bank.mask[victim.layer, 0, victim.expert]) for victim in plan.victims)
    assert copy(bank, plan, source)
    assert not bank.resident() & wanted(12)
    bank.check_integrity()
    assert publish(bank, plan) == 2
    assert wanted(12) <= bank.resident()
    bank.check_integrity()


def test_a_failed_read_leaves_the_slots_empty_and_a_retry_moves_only_the_rest(source: MemorySource) -> None:
    bank = bank_of(source)
    source.failing = {ExpertId(1, 5)}
    plan = bank.plan(wanted(4, 5))
    retire(bank, plan)
    with pytest.raises(Unavailable, match="layer 1 expert 5"):
        copy(bank, plan, source)
    assert bank.resident() == frozenset()
    bank.check_integrity()
    with pytest.raises(Conflict, match="is over; plan it again"):
        publish(bank, plan)
    source.failing = set()
    read = set(source.blobs_read)
    assert read < wanted(4, 5)
    bring(bank, source, wanted(4, 5))
    assert bank.resident() == wanted(4, 5)
    assert len(source.blobs_read) == 4
    bank.check_integrity()


def test_a_wrong_digest_is_never_published(source: MemorySource) -> None:
    bank = bank_of(source)
    bring(bank, source, wanted(*range(8)))
    source.corrupt = {ExpertId(0, 9)}
    plan = bank.plan(wanted(9))
    retire(bank, plan)
    with pytest.raises(CorruptData, match="layer 0 expert 9 arrived with a wrong digest") as caught:
        copy(bank, plan, source)
    assert caught.value.reason == "BLOB_DIGEST"
    assert ExpertId(0, 9) not in bank.resident()
    assert ExpertId(0, 9) not in bank.host
    bank.check_integrity()
    source.corrupt = set()
    bring(bank, source, wanted(9))
    assert wanted(9) <= bank.resident()
    bank.check_integrity()


def test_cancel_in_the_middle_of_a_copy(source: MemorySource) -> None:
    bank = bank_of(source)
    stop = threading.Event()
    source.on_blob = lambda expert: stop.set() if len(source.blobs_read) == 3 else None
    plan = bank.plan(wanted(*range(8)))
    retire(bank, plan)
    assert not copy(bank, plan, source, stop.is_set)
    assert len(source.blobs_read) == 3
    assert bank.resident() == frozenset()
    assert bank.slot_table() == [[-1] * SLOTS] * LAYERS
    bank.check_integrity()
    bring(bank, source, wanted(*range(8)))
    assert len(source.blobs_read) == 16
    bank.check_integrity()


def test_a_source_that_forgets_a_blob_is_found_out(source: MemorySource) -> None:
    bank = bank_of(source)
    whole = source.fetch
    source.fetch = lambda experts, *rest: whole(experts[:-1], *rest)  # type: ignore[method-assign]
    plan = bank.plan(wanted(1))
    retire(bank, plan)
    with pytest.raises(Unavailable, match="did not deliver layer 1 expert 1"):
        copy(bank, plan, source)
    assert bank.resident() == frozenset()


def test_a_source_may_deliver_from_its_own_threads(source: MemorySource) -> None:
    bank = bank_of(source)
    whole = source.fetch

    def threaded(experts, into, done, cancelled):  # type: ignore[no-untyped-def]
        threads = [
            threading.Thread(target=whole, args=([expert], into, done, cancelled), daemon=True) for expert in experts
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    source.fetch = threaded  # type: ignore[method-assign, assignment]
    bring(bank, source, wanted(*range(8)))
    bank.check_integrity()
    source.corrupt = {ExpertId(0, 12)}
    with pytest.raises(CorruptData):
        bring(bank, source, wanted(12, 13))
    bank.check_integrity()


def test_a_paced_copy_can_be_cancelled_while_it_waits(source: MemorySource) -> None:
    bank = bank_of(source)
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    plan = bank.plan(wanted(*range(8)))
    retire(bank, plan)
    # At one blob in three hours only the cancellation can end this.
    assert not copy(bank, plan, source, stop.is_set, bytes_per_second=1.0)
    assert len(source.blobs_read) <= 1
    bank.check_integrity()


def test_prefetch_fills_the_host_tier_and_no_slot(source: MemorySource) -> None:
    bank = bank_of(source, host_blobs=6)
    prefetch(bank, sorted(wanted(1, 2, 3, 4)), source)
    assert len(bank.host.experts()) == 6
    assert bank.resident() == frozenset()
    read = len(source.blobs_read)
    inside = bank.host.experts()
    bring(bank, source, inside)
    assert len(source.blobs_read) == read
    bank.check_integrity()


def test_pinned_victims_are_kept_in_host_memory(source: MemorySource) -> None:
    bank = bank_of(source, host_blobs=10)
    bring(bank, source, wanted(*range(8)))
    bring(bank, source, wanted(0, 1))
    paused = wanted(6, 7)
    # Others passed through the small host tier, so the paused ones may have left it.
    prefetch(bank, sorted(wanted(8, 9, 10, 11, 12)), source)
    bank.host.pin(paused)
    bank.touch(wanted(0, 1, 2, 3, 4, 5))
    bring(bank, source, wanted(8, 9))
    assert not bank.resident() & paused
    assert paused <= bank.host.experts()
    read = len(source.blobs_read)
    bring(bank, source, paused)
    assert len(source.blobs_read) == read
    bank.check_integrity()
    bank.host.unpin(paused)


def test_pins_leave_room_to_swap(source: MemorySource) -> None:
    bank = bank_of(source, host_blobs=4)
    with pytest.raises(Exhausted, match="host tier of 4"):
        bank.host.pin(wanted(1, 2))
    bank.host.pin(sorted(wanted(1)))
    bring(bank, source, wanted(*range(8)))
    assert wanted(1) <= bank.host.experts()
    bank.check_integrity()


def test_host_tier_forgets_the_least_recently_used_and_nothing_that_is_held() -> None:
    tier = HostTier(4, 3 * 4)
    a, b, c, d = (ExpertId(0, number) for number in range(4))
    for expert in (a, b, c):
        tier.reserve(expert).fill_(expert.expert)
        tier.commit(expert, "")
        tier.let_go(expert)
    assert tier.hold(a) is not None
    tier.let_go(a)
    held = tier.hold(b)
    tier.reserve(d)
    assert tier.experts() == {a, b}
    assert held is not None
    assert held.tolist() == [1] * 4
    tier.discard(d)
    tier.discard(d)
    assert tier.available == 2
    with pytest.raises(Conflict):
        tier.reserve(a)


def test_host_tier_in_full_use_says_so() -> None:
    tier = HostTier(4, 2 * 4)
    tier.reserve(ExpertId(0, 0))
    tier.reserve(ExpertId(0, 1))
    with pytest.raises(Exhausted, match="all 2 blobs of the host tier are pinned or in use"):
        tier.reserve(ExpertId(0, 2))


def test_blobs_are_cast_once_on_arrival(source: MemorySource) -> None:
    bank = bank_of(source, host_blobs=8, dtype=torch.bfloat16)
    bring(bank, source, wanted(*range(8)))
    bring(bank, source, wanted(*range(4, 12)))
    bring(bank, source, wanted(*range(8)))
    slot = bank.slot_table()[0].index(3)
    field = source.manifest().layout.fields[1]
    stored = torch.frombuffer(bytearray(source.blobs[ExpertId(0, 3)]), dtype=torch.float32)
    begin = field.offset // 4
    expected = stored[begin : begin + field.num_bytes // 4].reshape(field.shape).to(torch.bfloat16)
    assert torch.equal(bank.arenas[0].field("down")[slot], expected)
    bank.check_integrity()
    bank.arenas[0].data[slot, 0] += 1
    with pytest.raises(CorruptData):
        bank.check_integrity()


def test_several_threads_copy_what_one_would(source: MemorySource) -> None:
    bank = bank_of(source)
    bring(bank, source, wanted(*range(8)))
    bring(bank, source, wanted(*range(8, 16)))
    read = len(source.blobs_read)
    plan = bank.plan(wanted(*range(8)))
    retire(bank, plan)
    assert copy(bank, plan, source, threads=3)
    publish(bank, plan)
    assert bank.resident() == wanted(*range(8))
    assert len(source.blobs_read) == read
    bank.check_integrity()


def test_a_cancelled_copy_of_several_threads_leaves_its_slots_empty(source: MemorySource) -> None:
    bank = bank_of(source)
    bring(bank, source, wanted(*range(8)))
    bring(bank, source, wanted(*range(8, 16)))
    plan = bank.plan(wanted(*range(8)))
    retire(bank, plan)
    asked = threading.Semaphore(5)
    assert not copy(bank, plan, source, lambda: not asked.acquire(blocking=False), threads=3)
    assert bank.resident() == frozenset()
    bank.check_integrity()
    bring(bank, source, wanted(*range(8)))
    bank.check_integrity()


@pytest.mark.parametrize(("running", "cores", "threads"), [(0, 1, 1), (0, 2, 2), (0, 64, 4), (1, 64, 1), (9, 2, 1)])
def test_copies_take_the_cores_only_while_nothing_runs(running: int, cores: int, threads: int) -> None:
    assert copy_threads(running, cores) == threads
