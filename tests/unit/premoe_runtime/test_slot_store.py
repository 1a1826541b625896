"""The slot store's tables, mask rows and integrity check, and copies into its slots."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from support.oracle import experts_of, random_kept
from support.sources import MemorySource
from support.tiny import prune, tiny_checkpoint

from premoe_runtime.formats.errors import Conflict, CorruptData, InvalidInput, Unavailable
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.residency.copier import BlobCopy, Copier, Copy
from premoe_runtime.residency.fetch import Fetcher, never
from premoe_runtime.residency.host_arena import HostArena
from premoe_runtime.residency.host_tier import HostTier
from premoe_runtime.residency.ledger import Ledger
from premoe_runtime.residency.slot_shape import SlotShape
from premoe_runtime.residency.slot_store import SlotStore
from premoe_runtime.residency.swap import bring
from premoe_runtime.serving.requests import KeptPattern

LAYERS, EXPERTS, SLOTS = 2, 16, (8, 6)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> MemorySource:
    return MemorySource(tiny_checkpoint(tmp_path_factory.mktemp("store"), "qwen3_moe"))


@pytest.fixture
def source(pristine: MemorySource) -> MemorySource:
    pristine.failing, pristine.corrupt, pristine.blobs_read = set(), set(), []
    pristine.on_blob = lambda expert: None
    return pristine


@pytest.fixture
def store(source: MemorySource) -> SlotStore:
    return SlotStore(SlotShape.of(source.manifest(), slots=SLOTS, max_rows=4))


def full_row(*experts: int) -> dict[int, list[int]]:
    return {layer: list(experts) for layer in range(LAYERS)}


def wanted(*experts: int) -> frozenset[ExpertId]:
    return frozenset(ExpertId(layer, expert) for layer in range(LAYERS) for expert in experts)


def routable(store: SlotStore, row: int) -> frozenset[ExpertId]:
    """What a token under this row may be routed to."""
    return experts_of(store.mask[:, row] == 0)


def test_an_empty_store_routes_nowhere(store: SlotStore) -> None:
    assert store.resident() == frozenset()
    assert store.slot_table() == [[-1] * 8, [-1] * 6]
    assert [set(row.tolist()) for row in store.lut] == [{8}, {6}]
    assert torch.isinf(store.mask).all()
    store.check_integrity()


def test_sizes(store: SlotStore, source: MemorySource) -> None:
    assert store.shape.device_bytes == 14 * source.manifest().layout.blob_bytes


def test_views_are_the_blobs_fields(store: SlotStore, source: MemorySource) -> None:
    bring(store, source, wanted(3, 5))
    slot = store.slot_table()[1].index(5)
    for field in source.manifest().layout.fields:
        view = store.arenas[1].field(field.name)
        assert view.shape == (6, *field.shape)
        assert view.data_ptr() == store.arenas[1].data.data_ptr() + field.offset
        expected = source.blobs[ExpertId(1, 5)][field.offset : field.offset + field.num_bytes]
        assert view[slot].contiguous().numpy().tobytes() == expected


def test_only_missing_blobs_are_read(store: SlotStore, source: MemorySource) -> None:
    bring(store, source, wanted(0, 1, 2, 3))
    bring(store, source, wanted(2, 3, 4, 5))
    assert sorted(source.blobs_read) == sorted(wanted(0, 1, 2, 3, 4, 5))


@pytest.mark.parametrize("blobs", [2, 3, 5])
def test_staging_room_smaller_than_the_swap_passes_it_through(
    store: SlotStore, source: MemorySource, blobs: int
) -> None:
    bring(store, source, wanted(*range(6)), staging_bytes=blobs * store.shape.blob_bytes)
    assert store.resident() == wanted(*range(6))
    store.check_integrity()


def test_rows_see_only_what_is_resident(store: SlotStore, source: MemorySource) -> None:
    store.set_row(2, full_row(1, 2, 3))
    assert routable(store, 2) == frozenset()
    bring(store, source, wanted(1, 2))
    assert routable(store, 2) == wanted(1, 2)
    bring(store, source, wanted(3))
    assert routable(store, 2) == wanted(1, 2, 3)
    assert torch.isinf(store.mask[:, [0, 1, 3]]).all()
    store.check_integrity()


def test_kept_may_come_as_array_tensor_or_mapping(source: MemorySource) -> None:
    store = SlotStore(SlotShape.of(source.manifest(), slots=EXPERTS, max_rows=3))
    bring(store, source, wanted(*range(EXPERTS)))
    kept = random_kept(1, LAYERS, EXPERTS, 5)[0]
    store.set_row(0, kept)
    store.set_row(1, kept.numpy())
    store.set_row(2, {layer: np.flatnonzero(kept[layer].numpy()).tolist() for layer in range(LAYERS)})
    assert routable(store, 0) == routable(store, 1) == routable(store, 2) == experts_of(kept)


@pytest.mark.parametrize(
    ("row", "kept", "message"),
    [
        (4, full_row(1), "mask row 4 does not exist"),
        (-1, full_row(1), "mask row -1 does not exist"),
        (0, {0: [1]}, "keeps no expert in layer 1"),
        (0, np.ones((LAYERS, EXPERTS + 1), dtype=np.bool_), r"must be bool\[2, 16\], not \[2, 17\]"),
    ],
)
def test_rows_that_do_not_fit(store: SlotStore, row: int, kept: object, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        store.set_row(row, kept)  # type: ignore[arg-type]


def test_a_short_layer_has_no_slots_and_no_mask_beyond_its_experts(tmp_path: Path) -> None:
    source = MemorySource(prune(tiny_checkpoint(tmp_path, "qwen3_moe"), (16, 5)))
    store = SlotStore(SlotShape.of(source.manifest(), slots=8, max_rows=2))
    assert (store.slots, store.shape.device_bytes) == ((8, 5), 13 * store.shape.blob_bytes)
    bring(store, source, wanted(*range(5)), {0: full_row(*range(5))})
    store.check_integrity()
    with pytest.raises(InvalidInput, match="keeps layer 1 expert 5, which the model does not have"):
        store.set_row(0, {0: [1], 1: [2, 5]})
    with pytest.raises(InvalidInput, match="the model has no layer 1 expert 5"):
        bring(store, source, wanted(5))
    exists = source.manifest().exists
    with pytest.raises(Conflict, match="the full model needs 16/5 slots a layer, but this worker has 8/5"):
        KeptPattern.full(exists).check(exists, store.slots)
    KeptPattern.full(exists).check(exists, (16, 5))
    with pytest.raises(InvalidInput, match="2 MoE layers of 16/5 experts; use a pattern made for this model"):
        KeptPattern("p", np.ones((2, 16), np.bool_)).check(exists, (16, 16))


def test_tables_refuse_what_would_contradict_them(store: SlotStore, source: MemorySource) -> None:
    bring(store, source, wanted(1, 2))
    lut, mask = store.lut.clone(), store.mask.clone()
    with pytest.raises(Conflict, match="keeps layer 0 expert 9, which is not resident"):
        store.publish((), {0: full_row(1, 9)})
    with pytest.raises(Conflict, match="slot 0 of layer 0 is not free"):
        store.publish([(ExpertId(0, 9), 0)])
    with pytest.raises(Conflict, match="layer 1 expert 9 is not published"):
        store.retire([ExpertId(1, 9)])
    assert torch.equal(store.lut, lut)
    assert torch.equal(store.mask, mask)
    store.check_integrity()


def test_retired_experts_are_in_no_table(store: SlotStore, source: MemorySource) -> None:
    bring(store, source, wanted(1, 2), {0: full_row(1, 2)})
    store.retire([ExpertId(1, 2)])
    assert int(store.lut[1, 2]) == 6
    assert torch.isinf(store.mask[1, 0, 2])
    assert store.resident() == wanted(1, 2) - {ExpertId(1, 2)}
    store.check_integrity()


def test_addresses_never_change(store: SlotStore, source: MemorySource) -> None:
    def addresses() -> list[int]:
        return [t.data_ptr() for t in (store.lut, store.mask, store.sliced, *(arena.data for arena in store.arenas))]

    before = addresses()
    for turn in range(4):
        bring(store, source, wanted(*range(turn * 3, turn * 3 + 4)), {0: full_row(turn * 3)})
    assert addresses() == before


def test_integrity_finds_a_changed_byte(store: SlotStore, source: MemorySource) -> None:
    bring(store, source, wanted(1, 2))
    slot = store.slot_table()[1].index(2)
    store.arenas[1].data[slot, 100] += 1
    with pytest.raises(CorruptData, match=f"slot {slot} does not hold layer 1 expert 2"):
        store.check_integrity()


def test_integrity_finds_swapped_slots(store: SlotStore, source: MemorySource) -> None:
    bring(store, source, wanted(1, 2))
    store.lut[0, [1, 2]] = store.lut[0, [2, 1]]
    with pytest.raises(CorruptData, match="look-up table differs"):
        store.check_integrity()


def test_integrity_finds_a_mask_that_lets_an_absent_expert_in(store: SlotStore, source: MemorySource) -> None:
    bring(store, source, wanted(1, 2), {0: full_row(1)})
    store.mask[0, 0, 5] = 0
    with pytest.raises(CorruptData, match="mask table"):
        store.check_integrity()


def test_a_failed_fetch_leaves_what_is_resident(store: SlotStore, source: MemorySource) -> None:
    bring(store, source, wanted(*range(6)), {0: full_row(*range(6))})
    source.failing = {ExpertId(1, 9)}
    with pytest.raises(Unavailable, match="layer 1 expert 9"):
        bring(store, source, wanted(8, 9))
    assert routable(store, 0) == wanted(*range(6))
    source.failing, source.corrupt = set(), {ExpertId(0, 9)}
    with pytest.raises(CorruptData, match="layer 0 expert 9 arrived with a wrong digest") as caught:
        bring(store, source, wanted(9))
    assert caught.value.reason == "BLOB_DIGEST"
    assert routable(store, 0) == wanted(*range(6))
    store.check_integrity()


def test_a_source_that_forgets_a_blob_is_found_out(store: SlotStore, source: MemorySource) -> None:
    class Forgetful:
        manifest, read_file = source.manifest, source.read_file

        def fetch(self, experts, *rest):  # type: ignore[no-untyped-def]
            source.fetch(experts[:-1], *rest)

    with pytest.raises(Unavailable, match="did not deliver layer 1 expert 1"):
        bring(store, Forgetful(), wanted(1))


def test_a_source_may_deliver_from_its_own_threads(store: SlotStore, source: MemorySource) -> None:
    class Threaded:
        manifest, read_file = source.manifest, source.read_file

        def fetch(self, experts, into, done, cancelled=never, urgent=never):  # type: ignore[no-untyped-def]
            threads = [
                threading.Thread(target=source.fetch, args=([expert], into, done, cancelled)) for expert in experts
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    bring(store, Threaded(), wanted(*range(6)))
    store.check_integrity()
    source.corrupt = {ExpertId(0, 9)}
    with pytest.raises(CorruptData):
        bring(store, Threaded(), wanted(9, 10))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blobs_are_converted_on_the_way_into_host_memory(source: MemorySource, dtype: torch.dtype) -> None:
    store = SlotStore(SlotShape.of(source.manifest(), slots=SLOTS, dtype=dtype))
    bring(store, source, wanted(1, 2))
    assert store.arenas[0].field("down").dtype == dtype
    store.check_integrity()


def copies(store: SlotStore, source: MemorySource, *experts: int) -> tuple[Copier, Ledger, Copy]:
    """Everything ready to copy these experts into an empty store."""
    arena = HostArena(store.shape.blob_bytes, 2 * EXPERTS * store.shape.blob_bytes)
    host, ledger = HostTier(arena), Ledger(store.slots, (EXPERTS,) * len(store.slots))
    loads = ledger.plan(wanted(*experts))
    places = {load.expert: host.reserve(load.expert) for load in loads}
    Fetcher(source, store.shape, arena).fetch(places, host.commit)
    ledger.retire(loads)
    blobs = [BlobCopy(x.expert, places[x.expert], x.slot, host.digest(x.expert)) for x in loads]
    return Copier(store, arena), ledger, Copy(tuple(blobs))


@pytest.mark.parametrize("threads", [1, 3])
def test_a_copy_may_be_stopped_between_two_blobs(store: SlotStore, source: MemorySource, threads: int) -> None:
    copier, ledger, copy = copies(store, source, *range(5))
    asked = threading.Semaphore(7)
    loads = list(ledger._moving.values())
    copied = copier.run(Copy(copy.loads, threads=threads), lambda: not asked.acquire(blocking=False))
    assert copied.error is None
    assert copied.torn == frozenset()
    assert 0 < len(copied.written) < len(copy.loads)
    store.publish(ledger.settle(loads, copied.written, copied.torn))
    assert store.resident() == copied.written == ledger.resident()
    store.check_integrity()


def test_a_copy_saves_before_it_overwrites(store: SlotStore, source: MemorySource) -> None:
    bring(store, source, wanted(*range(6)))
    victim = ExpertId(1, 3)
    slot = store.slot_table()[1].index(3)
    arena = HostArena(store.shape.blob_bytes, 4 * store.shape.blob_bytes)
    arena.blob(1).copy_(torch.frombuffer(bytearray(source.blobs[ExpertId(1, 9)]), dtype=torch.uint8))
    store.retire([victim])
    load = BlobCopy(ExpertId(1, 9), 1, slot, source.manifest().digest(ExpertId(1, 9)))
    copied = Copier(store, arena).run(Copy((load,), saves=(BlobCopy(victim, 0, slot, ""),)))
    assert copied.saved == {victim: source.manifest().digest(victim)}
    assert arena.blob(0).numpy().tobytes() == source.blobs[victim]
    store.publish([(load.expert, slot)])
    store.check_integrity()


@pytest.mark.parametrize(("place", "slot"), [(99, 0), (0, 99), (-1, 0), (0, -1)])
def test_a_copy_never_leaves_its_memory(store: SlotStore, place: int, slot: int) -> None:
    expert = ExpertId(1, 2)
    copied = Copier(store, HostArena(store.shape.blob_bytes, 0)).run(Copy((BlobCopy(expert, place, slot, ""),)))
    assert isinstance(copied.error, IndexError)
    assert copied.written == frozenset()
