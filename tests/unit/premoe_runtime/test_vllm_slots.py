"""Slots in a kernel's own layout: blobs are packed on the way in, tables and integrity are those of every store."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from support.oracle import random_kept
from support.sources import MemorySource
from support.tiny import tiny_checkpoint

from premoe_runtime.engines.vllm.slots import PackedSlots, PackingCopier
from premoe_runtime.engines.vllm.turns import Turns
from premoe_runtime.formats.errors import CorruptData, Exhausted, InvalidInput
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.residency.blob_fields import field_view, torch_dtype
from premoe_runtime.residency.copier import BlobCopy, Copied, Copy, merged
from premoe_runtime.residency.host_arena import HostArena
from premoe_runtime.residency.ranks import share
from premoe_runtime.residency.slot_shape import SlotShape
from premoe_runtime.residency.swap import bring_by

LAYERS, EXPERTS, SLOTS = 2, 16, 8


@dataclass
class TransposedLayer:
    """A kernel that wants its weights the other way round, and a scale that it makes itself."""

    parameters: dict[str, torch.Tensor]
    share: range = range(SLOTS)

    def slot_parameters(self) -> dict[str, torch.Tensor]:
        return self.parameters

    def pack(self, fields: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        gate_up, down = fields["gate_up"].T, fields["down"].T
        return {"w2_weight": down, "w13_weight": gate_up, "w13_scale": gate_up.float().amax()}


@dataclass
class Ground:
    source: MemorySource
    slots: PackedSlots
    arena: HostArena

    def bring(self, experts: set[ExpertId], rows: dict[int, dict[int, list[int]]] | None = None) -> None:
        copier = PackingCopier(self.slots, self.arena)
        bring_by(copier.run, self.slots, self.arena, self.source, experts, rows)

    def expected(self, expert: ExpertId) -> dict[str, torch.Tensor]:
        blob = torch.frombuffer(bytearray(self.source.blobs[expert]), dtype=torch.uint8)[None]
        layout = self.source.manifest().layout
        gate_up, down = (field_view(blob, layout, name)[0].T for name in ("gate_up", "down"))
        return {"w13_weight": gate_up, "w2_weight": down, "w13_scale": gate_up.float().amax()}

    def held(self, layer: int, slot: int) -> dict[str, torch.Tensor]:
        return {name: weight[slot] for name, weight in self.slots.weights[layer].items()}


def parameters(source: MemorySource, slots: int = SLOTS) -> dict[str, torch.Tensor]:
    gate_up, down = source.manifest().layout.fields
    dtype = torch_dtype(gate_up.dtype)
    return {
        "w13_weight": torch.zeros(slots, *reversed(gate_up.shape), dtype=dtype),
        "w13_scale": torch.zeros(slots),
        "w2_weight": torch.zeros(slots, *reversed(down.shape), dtype=dtype),
    }


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=("fp32", "bf16"))
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Ground:
    source = MemorySource(tiny_checkpoint(tmp_path, dtype=request.param))
    shape = SlotShape.of(source.manifest(), slots=SLOTS, max_rows=4)
    slots = PackedSlots(shape, [TransposedLayer(parameters(source)) for _ in range(LAYERS)])
    return Ground(source, slots, HostArena(shape.blob_bytes, 3 * shape.blob_bytes))


def everything(made: Ground) -> list[torch.Tensor]:
    return [weight for layer in made.slots.weights for weight in layer.values()]


def some(*experts: int) -> set[ExpertId]:
    return {ExpertId(layer, expert) for layer in range(LAYERS) for expert in experts}


def test_slots_hold_packed_experts_at_addresses_that_stay(made: Ground) -> None:
    before = [weight.data_ptr() for weight in everything(made)]
    for turn in range(3):
        wanted = some(*range(turn, turn + 6))
        made.bring(wanted)
        made.slots.check_integrity()
        assert wanted <= made.slots.resident()
        for layer, row in enumerate(made.slots.slot_table()):
            for slot, expert in enumerate(row):
                if expert >= 0:
                    held, expected = made.held(layer, slot), made.expected(ExpertId(layer, expert))
                    assert held.keys() == expected.keys()
                    assert all(torch.equal(held[name], expected[name]) for name in held)
    assert [weight.data_ptr() for weight in everything(made)] == before


def test_more_than_the_slots_hold_is_refused_before_anything_is_written(made: Ground) -> None:
    made.bring(some(0, 1, 2))
    before = [weight.clone() for weight in everything(made)]
    with pytest.raises(Exhausted, match="more slots"):
        made.bring(some(*range(SLOTS + 1)))
    assert all(map(torch.equal, before, everything(made)))
    assert made.slots.resident() == some(0, 1, 2)


@pytest.mark.parametrize("name", ["w13_weight", "w13_scale", "w2_weight"])
def test_a_changed_number_in_a_slot_is_found(made: Ground, name: str) -> None:
    made.bring(some(3, 4))
    made.slots.check_integrity()
    made.slots.weights[1][name][made.slots.slot_table()[1].index(4)] += 1
    with pytest.raises(CorruptData, match="digest"):
        made.slots.check_integrity()


def test_a_layout_without_a_place_for_every_expert_is_refused(made: Ground) -> None:
    layer = TransposedLayer(parameters(made.source) | {"w2_scale": torch.zeros(1)})
    with pytest.raises(InvalidInput, match="w2_scale of 8 experts as \\[1\\]") as caught:
        PackedSlots(made.slots.shape, [layer, layer])
    assert caught.value.reason == "ENGINE_UNSUPPORTED"


def test_rows_keep_what_is_resident(made: Ground) -> None:
    kept = random_kept(1, LAYERS, EXPERTS, 5)[0]
    lists = {layer: kept[layer].nonzero().flatten().tolist() for layer in range(LAYERS)}
    made.bring({ExpertId(layer, e) for layer, experts in lists.items() for e in experts}, {2: lists})
    assert torch.equal(made.slots.mask[:, 2] == 0, kept)


def test_a_copy_that_fails_says_how_far_it_came(made: Ground) -> None:
    digest = made.source.manifest().digest(ExpertId(0, 1))
    copier = PackingCopier(made.slots, made.arena)
    whole, outside = BlobCopy(ExpertId(0, 1), 0, 2, digest), BlobCopy(ExpertId(0, 2), 0, SLOTS, digest)
    copied = copier.run(Copy((whole, outside)))
    assert copied.written == {ExpertId(0, 1)}
    assert copied.torn == {ExpertId(0, 2)}
    assert isinstance(copied.error, IndexError)
    stopped = copier.run(Copy((whole,)), lambda: True)
    assert (stopped.written, stopped.torn, stopped.error) == (frozenset(), frozenset(), None)


def test_nothing_is_saved_from_a_packed_slot(made: Ground) -> None:
    made.bring(some(1))
    saved = PackingCopier(made.slots, made.arena).run(Copy((), (BlobCopy(ExpertId(0, 1), 0, 0, ""),)))
    assert saved.saved == {}
    assert saved.error is None


def ranked(source: MemorySource, rank: int, ranks: int, sources: list[MemorySource]) -> Ground:
    """One of several ranks; ``sources``: of each."""
    shape = SlotShape.as_stored(source.manifest(), slots=SLOTS, max_rows=4, ranks=ranks)
    here = share(SLOTS, ranks, rank)
    layers = [TransposedLayer(parameters(source, len(here)), here) for _ in range(LAYERS)]
    return Ground(sources[rank], PackedSlots(shape, layers), HostArena(shape.blob_bytes, 3 * shape.blob_bytes))


class Meeting:
    """Where ranks, each on a thread of its own, make one of what they have done."""

    def __init__(self, ranks: int) -> None:
        self._barrier, self._parts = threading.Barrier(ranks), [Copied(frozenset())] * ranks

    def together(self, rank: int, copied: Copied) -> Copied:
        self._parts[rank] = copied
        self._barrier.wait(60)
        found = merged(self._parts)
        self._barrier.wait(60)
        return found


def bring_together(grounds: list[Ground], experts: set[ExpertId]) -> list[BaseException | None]:
    """What each rank raises."""
    meeting = Meeting(len(grounds))

    def one(rank: int) -> None:
        made = grounds[rank]
        run, together = PackingCopier(made.slots, made.arena).run, partial(meeting.together, rank)
        bring_by(run, made.slots, made.arena, made.source, experts, together=together)

    with ThreadPoolExecutor(len(grounds)) as pool:
        return [done.exception() for done in [pool.submit(one, rank) for rank in range(len(grounds))]]


@pytest.mark.parametrize("ranks", [2, 3])
def test_every_rank_holds_its_share_and_knows_where_the_others_are(tmp_path: Path, ranks: int) -> None:
    folder = tiny_checkpoint(tmp_path)
    source, sources = MemorySource(folder), [MemorySource(folder) for _ in range(ranks)]
    grounds = [ranked(source, rank, ranks, sources) for rank in range(ranks)]
    for turn in range(3):
        assert bring_together(grounds, some(*range(turn, turn + 6))) == [None] * ranks
        table = grounds[0].slots.slot_table()
        for made in grounds:
            made.slots.check_integrity()
            assert made.slots.slot_table() == table
            for layer, row in enumerate(table):
                for slot, expert in enumerate(row):
                    if expert >= 0 and made.slots.holds(layer, slot):
                        held = made.held(layer, slot - made.slots._shares[layer].start)
                        expected = made.expected(ExpertId(layer, expert))
                        assert all(torch.equal(held[name], expected[name]) for name in held)
    # Every blob is read by the rank that has its slot, and by no other.
    read = [expert for each in sources for expert in each.blobs_read]
    assert len(read) == len(set(read)) == LAYERS * 8


def test_what_one_rank_cannot_read_no_rank_publishes(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path)
    source, sources = MemorySource(folder), [MemorySource(folder) for _ in range(2)]
    grounds = [ranked(source, rank, 2, sources) for rank in range(2)]
    assert bring_together(grounds, some(0, 1)) == [None, None]
    before = grounds[0].slots.slot_table()
    sources[1].blobs.clear()
    errors = bring_together(grounds, some(2, 3, 4))
    assert all(error is not None for error in errors)
    for made in grounds:
        assert made.slots.slot_table() == before
        made.slots.check_integrity()


def test_turns_go_out_in_the_order_in_which_they_were_asked_for() -> None:
    turns, order = Turns(), list[int]()

    def take(number: int) -> None:
        with turns:
            order.append(number)

    threads = [threading.Thread(target=take, args=(number,), daemon=True) for number in range(5)]
    with turns:
        for number, thread in enumerate(threads):
            thread.start()
            while turns._asked < number + 2:
                time.sleep(0.001)
        assert not order
    for thread in threads:
        thread.join(60)
    assert order == [0, 1, 2, 3, 4]
