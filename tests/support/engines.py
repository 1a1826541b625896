"""What engine and manager tests share: a tiny slot model with a running engine, and collectors of events."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from premoe_runtime.engines.base import Engine, SamplingParams, Sequence, SequenceRequest, TokenEvent
from premoe_runtime.engines.hf.engine import HfEngine
from premoe_runtime.engines.hf.model import SlotModel, load_slot_model
from premoe_runtime.residency.bank import ExpertBank
from premoe_runtime.residency.swap import bring
from premoe_runtime.serving.manager import ResidencyManager
from premoe_runtime.serving.requests import KeptPattern, ManagedRequest
from premoe_runtime.serving.swapping import SwapReport
from support.oracle import experts_of, random_kept
from support.sources import MemorySource
from support.tiny import Family, tiny_checkpoint

LAYERS, EXPERTS, TOP_K = 2, 16, 4
WAIT_SECONDS = 60
"""Bound on waits that only a bug would reach."""


@dataclass
class Collector:
    """Receives the events of one sequence. ``gate``, if any, is called for each, on the thread that delivers it."""

    request_id: str = ""
    gate: Callable[[TokenEvent], None] | None = None
    events: list[TokenEvent] = field(default_factory=list)
    first: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    handle: Sequence | None = None

    def __call__(self, event: TokenEvent) -> None:
        assert not self.ended.is_set(), "an event came after the last one"
        self.events.append(event)
        self.first.set()
        try:
            if self.gate is not None:
                self.gate(event)
        finally:
            if event.last:
                self.ended.set()

    def cancel(self) -> None:
        assert self.handle is not None, "nothing was submitted"
        self.handle.cancel()

    def wait(self) -> Collector:
        assert self.ended.wait(WAIT_SECONDS), "the sequence did not end"
        return self

    def wait_first(self) -> Collector:
        assert self.first.wait(WAIT_SECONDS), "no event came"
        return self

    @property
    def tokens(self) -> list[int]:
        return [token for event in self.events for token in event.token_ids]

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events)

    @property
    def last(self) -> TokenEvent:
        return self.events[-1]


@dataclass
class Bench:
    """An engine over a tiny model. ``kept``: bool[P, L, E]; mask rows 0 … P - 1 are resident and written."""

    engine: Engine
    slot_model: SlotModel
    source: MemorySource
    folder: Path
    kept: torch.Tensor
    _serial: int = 0

    def request(self, token_ids: list[int], *, row: int = 0, active: int = TOP_K, **sampling: Any) -> SequenceRequest:
        self._serial += 1
        return SequenceRequest(f"r{self._serial}", tuple(token_ids), row, active, SamplingParams(**sampling))

    def submit(
        self, token_ids: list[int], *, gate: Callable[[TokenEvent], None] | None = None, **options: Any
    ) -> Collector:
        request = self.request(token_ids, **options)
        collector = Collector(request.request_id, gate)
        collector.handle = self.engine.submit(request, collector)
        return collector

    def run(self, token_ids: list[int], **options: Any) -> Collector:
        return self.submit(token_ids, **options).wait()


def prompt(length: int, seed: int = 0) -> list[int]:
    """Random byte tokens; no special ones."""
    return torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@contextmanager
def hf_bench(
    folder: Path,
    *,
    family: Family = "qwen3_moe",
    dtype: torch.dtype = torch.float32,
    rows: int = 3,
    kept_per_layer: int = 5,
    slots: int = EXPERTS,
    overrides: dict[str, Any] | None = None,
    **engine: Any,
) -> Iterator[Bench]:
    """The transformers engine with ``rows`` random patterns in force; closed at the end."""
    checkpoint = tiny_checkpoint(folder, family, dtype, **(overrides or {}))
    source = MemorySource(checkpoint)
    slot_model = load_slot_model(source, slots=slots)
    kept = random_kept(rows, LAYERS, EXPERTS, kept_per_layer)
    if rows:
        bring(slot_model.bank, source, experts_of(kept), {row: kept[row] for row in range(rows)})
    running = HfEngine(slot_model, **engine)
    try:
        yield Bench(running, slot_model, source, checkpoint, kept)
    finally:
        running.close()


def kept_table(experts: list[list[int]]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """bool[L, E] with these experts kept in each layer."""
    table = np.zeros((len(experts), EXPERTS), dtype=np.bool_)
    for layer, chosen in enumerate(experts):
        table[layer, chosen] = True
    return table


@dataclass
class Started:
    """Receives the swap report of one request, and notes that no event came before it."""

    collector: Collector
    reports: list[SwapReport] = field(default_factory=list)

    def __call__(self, report: SwapReport) -> None:
        assert not self.collector.events, "an event came before the report"
        self.reports.append(report)


@dataclass
class ManagedBench:
    """A residency manager in front of the transformers engine over a tiny model."""

    manager: ResidencyManager
    engine: HfEngine
    bank: ExpertBank
    source: MemorySource
    slot_model: SlotModel
    _serial: int = 0

    def request(
        self, pattern: KeptPattern | Literal["full"], token_ids: list[int], active: int = TOP_K, **sampling: Any
    ) -> ManagedRequest:
        self._serial += 1
        return ManagedRequest(f"m{self._serial}", pattern, active, tuple(token_ids), SamplingParams(**sampling))

    def submit(
        self,
        pattern: KeptPattern | Literal["full"],
        token_ids: list[int],
        *,
        gate: Callable[[TokenEvent], None] | None = None,
        **options: Any,
    ) -> tuple[Collector, Started]:
        request = self.request(pattern, token_ids, **options)
        collector = Collector(request.request_id, gate)
        started = Started(collector)
        collector.handle = self.manager.generate(request, started, collector)
        return collector, started

    def run(self, pattern: KeptPattern | Literal["full"], token_ids: list[int], **options: Any) -> Collector:
        return self.submit(pattern, token_ids, **options)[0].wait()


@contextmanager
def managed_bench(
    folder: Path, *, slots: int, max_rows: int = 8, host_bytes: int | None = None, **options: Any
) -> Iterator[ManagedBench]:
    """A manager over an empty bank; ``options`` go to the manager, but for those of the engine. Closed at the end."""
    engine_options = {
        name: options.pop(name) for name in ("max_sequences", "context", "prefill_tokens") if name in options
    }
    source = MemorySource(tiny_checkpoint(folder))
    slot_model = load_slot_model(source, slots=slots, max_rows=max_rows, host_bytes=host_bytes)
    engine = HfEngine(slot_model, **engine_options)
    manager = ResidencyManager(engine, slot_model.bank, source, **options)
    try:
        yield ManagedBench(manager, engine, slot_model.bank, source, slot_model)
    finally:
        manager.close()


def pattern(name: str, *layers: range | list[int]) -> KeptPattern:
    """A pattern that keeps these experts in layer 0 and 1 (one list: in both)."""
    first, second = layers[0], layers[-1]
    return KeptPattern(name, kept_table([list(first), list(second)]))
