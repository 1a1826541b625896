"""A state machine of swaps, faults, cancellations, admissions and decode steps; tables and bytes checked at every step.

Whatever happens to a swap, the rows that run must answer exactly as the stock model masked from outside.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.oracle import experts_of, masked_selection, random_kept, stock_logits
from support.sources import MemorySource
from support.tiny import tiny_checkpoint
from transformers import AutoModelForCausalLM, PreTrainedModel

from premoe_runtime.engines.hf.model import load_slot_model
from premoe_runtime.formats.errors import Conflict, CorruptData, Exhausted, Unavailable
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.residency.copier import BlobCopy, Copier, Copy
from premoe_runtime.residency.fetch import Fetcher
from premoe_runtime.residency.host_arena import HostArena
from premoe_runtime.residency.ledger import Ledger
from premoe_runtime.residency.plan import Load

LAYERS, EXPERTS, KEPT, PATTERNS, WIDTH = 2, 8, 3, 6, 5
SLOTS = (7, 5)
SHAPE: dict[str, Any] = {
    "num_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "hidden_size": 32,
    "intermediate_size": 16,
    "num_attention_heads": 2,
}
kept_table = random_kept(PATTERNS, LAYERS, EXPERTS, KEPT, seed=11)
pattern_numbers = st.integers(0, PATTERNS - 1)
any_swap = st.integers(0, 7)
"""An index into the swaps under way, taken modulo their number."""


@cache
def parts() -> tuple[PreTrainedModel, MemorySource]:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = tiny_checkpoint(Path(folder), "olmoe", **SHAPE)
        stock = AutoModelForCausalLM.from_pretrained(checkpoint, experts_implementation="grouped_mm")
        return stock.eval().requires_grad_(False), MemorySource(checkpoint)


@dataclass(eq=False)
class Pending:
    """An admission whose blobs are in host memory and whose victims were retired."""

    pattern: int
    loads: tuple[Load, ...]
    places: dict[ExpertId, int]
    digests: dict[ExpertId, str]
    copied: bool = False


class SwapMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.stock, self.source = parts()
        self.source.failing, self.source.corrupt = set(), set()
        self.source.on_blob = lambda expert: None
        self.running: list[int] = []
        self.pending: list[Pending] = []
        self.forwards = 0

    @initialize()
    def load(self) -> None:
        self.model = load_slot_model(self.source, slots=SLOTS, max_rows=PATTERNS)
        self.store = self.model.store
        self.ledger = Ledger(SLOTS, (EXPERTS,) * len(SLOTS))
        self.arena = HostArena(self.store.shape.blob_bytes, 64 * self.store.shape.blob_bytes)
        self.free = list(range(64))
        self.fetcher = Fetcher(self.source, self.store.shape, self.arena)
        self.copier = Copier(self.store, self.arena)

    # What a scheduler does.

    def in_use(self) -> frozenset[ExpertId]:
        """Running sequences' experts, and what admissions under way found resident."""
        waiting = [pending.pattern for pending in self.pending]
        needed = experts_of(kept_table[self.running + waiting]) if self.running or waiting else frozenset()
        return frozenset(needed)

    def fetch(self, pattern: int) -> Pending | None:
        """Plan, and bring the blobs into host memory; nothing gives way for them yet."""
        needed = experts_of(kept_table[pattern])
        try:
            loads = self.ledger.plan(needed, self.in_use())
        except Exhausted:
            together = needed | self.in_use()
            assert any(sum(e.layer == layer for e in together) > SLOTS[layer] for layer in range(LAYERS))
            return None
        except Conflict:
            assert needed & {load.expert for pending in self.pending for load in pending.loads}
            return None
        if len(self.free) < len(loads):
            return None
        places = {load.expert: self.free.pop() for load in loads}
        digests: dict[ExpertId, str] = {}
        try:
            self.fetcher.fetch(places, digests.__setitem__)
        finally:
            faulty = self.source.failing | self.source.corrupt
            self.source.failing, self.source.corrupt = set(), set()
            if len(digests) < len(loads):
                assert faulty & places.keys()
                self.free += places.values()
        return Pending(pattern, loads, places, digests)

    @rule(pattern=pattern_numbers)
    def admit(self, pattern: int) -> None:
        if pending := self.fetch(pattern):
            victims = self.ledger.retire(pending.loads, in_use=self.in_use())
            assert not set(victims) & self.in_use()
            self.store.retire(victims)
            self.pending.append(pending)

    @rule(pattern=pattern_numbers, expert=st.integers(0, EXPERTS - 1), layer=st.integers(0, 1), corrupt=st.booleans())
    def a_fetch_fails(self, pattern: int, expert: int, layer: int, corrupt: bool) -> None:
        """Whatever the source does, what is resident stays resident."""
        before = self.ledger.resident()
        (self.source.corrupt if corrupt else self.source.failing).add(ExpertId(layer, expert))
        with contextlib.suppress(CorruptData, Unavailable):
            if pending := self.fetch(pattern):
                self.free += pending.places.values()
        self.source.failing, self.source.corrupt = set(), set()
        assert self.ledger.resident() == before

    def pick(self, index: int, *, copied: bool) -> Pending | None:
        found = [pending for pending in self.pending if pending.copied == copied]
        return found[index % len(found)] if found else None

    @rule(index=any_swap, stop_after=st.integers(0, 9), decode=st.booleans())
    def copy(self, index: int, stop_after: int, decode: bool) -> None:
        """Copy all, or stop after some blobs; decoding may go on meanwhile."""
        pending = self.pick(index, copied=False)
        if pending is None:
            return
        asked = threading.Semaphore(2 * stop_after + 1)
        blobs = [BlobCopy(x.expert, pending.places[x.expert], x.slot, pending.digests[x.expert]) for x in pending.loads]
        with ThreadPoolExecutor(1) as pool:
            job = pool.submit(self.copier.run, Copy(tuple(blobs)), lambda: not asked.acquire(blocking=False))
            if decode:
                self.decode()
        copied = job.result()
        assert copied.error is None
        assert copied.torn == frozenset()
        # What came stays, whose slot was not written comes back.
        self.store.publish(self.ledger.settle(pending.loads, copied.written))
        self.free += pending.places.values()
        pending.copied = len(copied.written) == len(pending.loads)
        if not pending.copied:
            self.pending.remove(pending)

    @rule(index=any_swap)
    def publish_one(self, index: int) -> None:
        if pending := self.pick(index, copied=True):
            self.store.publish((), {pending.pattern: kept_table[pending.pattern]})
            self.pending.remove(pending)
            self.running.append(pending.pattern)

    @precondition(lambda self: self.running)
    @rule(index=any_swap)
    def finish(self, index: int) -> None:
        self.running.pop(index % len(self.running))

    @rule(pattern=pattern_numbers)
    def switch_task(self, pattern: int) -> None:
        """All that runs ends, another pattern comes: the usual way to evict."""
        while self.running:
            self.finish(0)
        self.admit(pattern)
        self.copy(-1, 9, False)
        self.publish_one(-1)
        self.decode()

    @precondition(lambda self: self.running)
    @rule()
    def decode(self) -> None:
        """One forward over a mixed batch of all running rows: bit-equal to the masked stock model."""
        if not self.running:
            return
        self.forwards += 1
        generator = torch.Generator().manual_seed(self.forwards)
        ids = torch.randint(0, 256, (len(self.running), WIDTH), generator=generator)
        rows = torch.tensor(self.running).repeat_interleave(WIDTH)
        with masked_selection(kept_table, rows):
            expected = stock_logits(self.stock, ids)
        self.model.steps(rows.tolist())
        assert torch.equal(stock_logits(self.model.model, ids), expected)

    @invariant()
    def tables_and_bytes_agree(self) -> None:
        self.store.check_integrity()
        assert self.store.resident() == self.ledger.resident()
        for pattern in self.running:
            assert experts_of(kept_table[pattern]) == experts_of(self.store.mask[:, pattern] == 0)


SwapMachine.TestCase.settings = settings(
    max_examples=50, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestSwapMachine = pytest.mark.timeout(900)(pytest.mark.slow(SwapMachine.TestCase))
