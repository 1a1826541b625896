"""A state machine of swaps, faults, cancellations, admissions and decode steps; tables and bytes checked at every step.

Whatever happens to a swap, the rows that run must answer exactly as the stock model masked from outside.
"""

from __future__ import annotations

import tempfile
import threading
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
from premoe_runtime.residency.plan import SwapPlan
from premoe_runtime.residency.swap import copy, prefetch, publish, retire

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
    """An admission whose swap was retired; ``copied`` once its bytes are in the slots."""

    pattern: int
    plan: SwapPlan
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

    @initialize(host_blobs=st.integers(2, 2 * EXPERTS))
    def load(self, host_blobs: int) -> None:
        host_bytes = host_blobs * self.source.manifest().layout.blob_bytes
        self.model = load_slot_model(self.source, slots=SLOTS, max_rows=PATTERNS, host_bytes=host_bytes)
        self.bank = self.model.bank

    # What a scheduler does.

    def in_use(self) -> frozenset[ExpertId]:
        """Running sequences' experts, and what admissions under way found resident."""
        waiting = [pending.pattern for pending in self.pending]
        needed = experts_of(kept_table[self.running + waiting]) if self.running or waiting else frozenset()
        return frozenset(needed)

    @rule(pattern=pattern_numbers)
    def admit(self, pattern: int) -> None:
        needed, arriving = experts_of(kept_table[pattern]), {e for p in self.pending for e in self.arriving(p)}
        try:
            plan = self.bank.plan(needed, self.in_use())
            retire(self.bank, plan, in_use=self.in_use())
        except Exhausted:
            together = needed | self.in_use()
            assert any(sum(e.layer == layer for e in together) > SLOTS[layer] for layer in range(LAYERS))
        except Conflict:
            assert needed & arriving
        else:
            assert not plan.victims & self.in_use()
            self.pending.append(Pending(pattern, plan))

    def arriving(self, pending: Pending) -> set[ExpertId]:
        return {load.expert for load in pending.plan.loads}

    def uncopied(self, index: int, pattern: int) -> Pending | None:
        """A swap whose bytes are still to come; if none is under way, one for ``pattern`` is started."""
        if all(pending.copied for pending in self.pending):
            self.admit(pattern)
        return self.pick(index, copied=False)

    def pick(self, index: int, *, copied: bool) -> Pending | None:
        found = [pending for pending in self.pending if pending.copied == copied]
        return found[index % len(found)] if found else None

    def run_copy(self, pending: Pending, stop: threading.Event) -> bool:
        """Copy; after a fault or a cancellation the admission is over and its slots are empty."""
        finished = False
        try:
            finished = copy(self.bank, pending.plan, self.source, stop.is_set)
        finally:
            self.source.failing, self.source.corrupt = set(), set()
            self.source.on_blob = lambda expert: None
            pending.copied = finished
            if not finished:
                self.pending.remove(pending)
        return finished

    @rule(index=any_swap)
    def copy_all(self, index: int) -> None:
        if pending := self.pick(index, copied=False):
            assert self.run_copy(pending, threading.Event())

    @rule(index=any_swap, pattern=pattern_numbers, after=st.integers(1, 3))
    def cancel_in_mid_copy(self, index: int, pattern: int, after: int) -> None:
        if pending := self.uncopied(index, pattern):
            stop, seen = threading.Event(), []

            def count(expert: ExpertId) -> None:
                seen.append(expert)
                if len(seen) == after:
                    stop.set()

            self.source.on_blob = count
            finished = self.run_copy(pending, stop)
            assert finished == (not stop.is_set())

    @rule(index=any_swap, pattern=pattern_numbers, which=st.integers(0, 5), corrupt=st.booleans())
    def fault_in_mid_copy(self, index: int, pattern: int, which: int, corrupt: bool) -> None:
        pending = self.uncopied(index, pattern)
        if pending is None or not pending.plan.loads:
            return
        victim = pending.plan.loads[which % len(pending.plan.loads)].expert
        in_host = victim in self.bank.host
        (self.source.corrupt if corrupt else self.source.failing).add(victim)
        try:
            self.run_copy(pending, threading.Event())
        except (CorruptData, Unavailable):
            assert not in_host
            assert victim not in self.bank.resident()
        else:
            # Only a checked copy in host memory makes a broken source harmless.
            assert in_host

    @rule(index=any_swap, pattern=pattern_numbers)
    def decode_and_admit_while_copying(self, index: int, pattern: int) -> None:
        if pending := self.uncopied(index, pattern):
            turns: list[ExpertId] = []

            def between(expert: ExpertId) -> None:
                self.bank.check_integrity()
                self.decode()
                if not turns:
                    self.admit(pattern)
                turns.append(expert)

            self.source.on_blob = between
            assert self.run_copy(pending, threading.Event())

    @rule(index=any_swap, pattern=pattern_numbers)
    def decode_while_a_thread_copies(self, index: int, pattern: int) -> None:
        if pending := self.uncopied(index, pattern):
            thread = threading.Thread(target=self.run_copy, args=(pending, threading.Event()))
            thread.start()
            self.decode()
            thread.join()
            assert pending.copied

    @rule(index=any_swap)
    def publish_one(self, index: int) -> None:
        if pending := self.pick(index, copied=True):
            generation = self.bank.generation
            publish(self.bank, pending.plan, {pending.pattern: kept_table[pending.pattern]})
            assert self.bank.generation == generation + 1
            self.pending.remove(pending)
            self.running.append(pending.pattern)

    @precondition(lambda self: self.running)
    @rule(index=any_swap)
    def finish(self, index: int) -> None:
        pattern = self.running.pop(index % len(self.running))
        if pattern not in self.running:
            self.bank.clear_row(pattern)

    @rule(pattern=pattern_numbers)
    def switch_task(self, pattern: int) -> None:
        """All that runs ends, another pattern comes: the usual way to evict."""
        while self.running:
            self.finish(0)
        self.admit(pattern)
        self.copy_all(-1)
        self.publish_one(-1)
        self.decode()

    @rule(index=any_swap)
    def abandon(self, index: int) -> None:
        if pending := self.pick(index, copied=True):
            self.bank.abandon(pending.plan)
            self.pending.remove(pending)

    @rule(pattern=pattern_numbers)
    def prefetch_a_pattern(self, pattern: int) -> None:
        prefetch(self.bank, sorted(experts_of(kept_table[pattern])), self.source)

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
        self.model.steps(rows)
        assert torch.equal(stock_logits(self.model.model, ids), expected)

    @invariant()
    def tables_and_bytes_agree(self) -> None:
        self.bank.check_integrity()
        for pattern in self.running:
            assert self.bank.row_ready(pattern)
            assert experts_of(kept_table[pattern]) <= self.bank.resident()
        for pending in self.pending:
            assert not self.arriving(pending) & self.bank.resident()


SwapMachine.TestCase.settings = settings(
    max_examples=50, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestSwapMachine = pytest.mark.slow(SwapMachine.TestCase)
