"""What engine and manager tests share: a tiny slot model with a running engine, and collectors of events."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from multiprocessing.context import ForkServerContext
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from premoe_runtime.engines.base import (
    Cancel,
    Check,
    Checked,
    Ended,
    Engine,
    Load,
    Loaded,
    MaskRow,
    Pause,
    Publish,
    Published,
    Report,
    Resume,
    StepReport,
    Submit,
    TokenEvent,
)
from premoe_runtime.engines.child.engine import ChildEngine
from premoe_runtime.engines.child.main import Build
from premoe_runtime.engines.child.ranked import Member, RankedEngine
from premoe_runtime.engines.hf.engine import HfEngine
from premoe_runtime.engines.hf.model import SlotModel, load_slot_model
from premoe_runtime.engines.hf.tokenizer import load_tokenizer
from premoe_runtime.engines.params import SamplingParams
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.residency.copier import BlobCopy, Copy
from premoe_runtime.residency.host_arena import HostArena
from premoe_runtime.residency.host_tier import HostTier
from premoe_runtime.residency.plan import STAGING_BYTES
from premoe_runtime.residency.slot_shape import SlotShape
from premoe_runtime.residency.slot_store import SlotStore
from premoe_runtime.serving.front import Front, Handle
from premoe_runtime.serving.reports import SwapReport
from premoe_runtime.serving.requests import KeptPattern, Request
from support.oracle import experts_of, random_kept
from support.sources import MemorySource
from support.tiny import FAMILIES, tiny_checkpoint

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
    handle: Handle | EngineHandle | None = None

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
class EngineHandle:
    """Cancels a sequence that was posted to an engine directly."""

    engine: Engine
    request_id: str

    def cancel(self) -> None:
        self.engine.post(Cancel(frozenset({self.request_id})))


class Reports:
    """Receives an engine's reports and hands events to their collectors."""

    def __init__(self) -> None:
        self.collectors: dict[str, Collector] = {}
        self.other: SimpleQueue[Report] = SimpleQueue()
        self.last = StepReport()
        self.ended: list[Ended] = []

    def __call__(self, report: Report) -> None:
        if isinstance(report, StepReport):
            self.last = report
            for request_id, event in report.events:
                self.collectors[request_id](event)
        elif isinstance(report, Ended):
            self.ended.append(report)
        else:
            self.other.put(report)


@dataclass
class Bench:
    """An engine over a tiny model. ``kept``: bool[P, L, E]; mask rows 0 … P - 1 are resident and written.

    ``slots``: where each resident expert lies.
    """

    engine: Engine
    arena: HostArena
    source: MemorySource
    folder: Path
    kept: torch.Tensor
    reports: Reports
    slots: dict[ExpertId, int] = field(default_factory=dict)
    _serial: int = 0

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.source)

    def request(
        self, token_ids: list[int], *, row: int = 0, active: int = TOP_K, priority: int = 0, **sampling: Any
    ) -> Submit:
        self._serial += 1
        params = SamplingParams(**sampling)
        return Submit(f"r{self._serial}", tuple(token_ids), row, active, params, priority=priority)

    def submit(
        self, token_ids: list[int], *, gate: Callable[[TokenEvent], None] | None = None, **options: Any
    ) -> Collector:
        request = self.request(token_ids, **options)
        collector = Collector(request.request_id, gate)
        return self.post(request, collector)

    def post(self, request: Submit, collector: Collector) -> Collector:
        collector.handle = EngineHandle(self.engine, request.request_id)
        self.reports.collectors[request.request_id] = collector
        self.engine.post(request)
        return collector

    def pause(self, *request_ids: str) -> None:
        self.engine.post(Pause(frozenset(request_ids)))

    def resume(self, *request_ids: str) -> None:
        self.engine.post(Resume(frozenset(request_ids)))

    def boundary(self) -> None:
        """Wait until everything posted so far was carried out; bytes and tables are right then."""
        self.engine.post(Check())
        checked = self.reports.other.get(timeout=WAIT_SECONDS)
        assert checked == Checked(None)

    def run(self, token_ids: list[int], **options: Any) -> Collector:
        return self.submit(token_ids, **options).wait()

    def place(self, expert: ExpertId, place: int) -> BlobCopy:
        """The expert's bytes at a place of the arena, to be copied into the slot that ``slots`` says."""
        self.arena.blob(place).numpy()[:] = np.frombuffer(self.source.blobs[expert], np.uint8)
        return BlobCopy(expert, place, self.slots[expert], self.source.manifest().digest(expert))

    def load(self, *blobs: BlobCopy) -> Loaded:
        self.engine.post(Load(Copy(blobs)))
        loaded = self.reports.other.get(timeout=WAIT_SECONDS)
        assert isinstance(loaded, Loaded)
        assert loaded.copied.error is None
        return loaded

    def publish(self, *experts: ExpertId, row: MaskRow | None = None) -> None:
        self.engine.post(Publish(tuple((expert, self.slots[expert]) for expert in experts), row))
        assert isinstance(self.reports.other.get(timeout=WAIT_SECONDS), Published)

    def fill(self) -> None:
        """Bring what the rows keep into slots, and write the rows, by the port's own commands."""
        wanted = sorted(experts_of(self.kept))
        for layer in range(LAYERS):
            self.slots |= {expert: slot for slot, expert in enumerate(e for e in wanted if e.layer == layer)}
        while wanted:
            batch, wanted = wanted[: self.arena.capacity], wanted[self.arena.capacity :]
            self.load(*(self.place(expert, place) for place, expert in enumerate(batch)))
            self.publish(*batch)
        for row, kept in enumerate(self.kept):
            self.publish(row=MaskRow(row, kept.numpy(), "selection"))


@dataclass
class HfBench(Bench):
    """With the model of an engine in this process."""

    slot_model: SlotModel = field(kw_only=True)


def prompt(length: int, seed: int = 0) -> list[int]:
    """Random byte tokens; no special ones."""
    return torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@dataclass
class Ground:
    """What any engine over a tiny model starts from."""

    folder: Path
    source: MemorySource
    shape: SlotShape
    arena: HostArena
    kept: torch.Tensor


def ground(
    folder: Path,
    *,
    family: str = "qwen3_moe",
    dtype: torch.dtype = torch.float32,
    rows: int = 3,
    kept_per_layer: int = 5,
    slots: int = EXPERTS,
    overrides: dict[str, Any] | None = None,
    host_blobs: int = 2,
) -> Ground:
    """A checkpoint, a host tier of ``host_blobs`` places, and ``rows`` random patterns."""
    checkpoint = tiny_checkpoint(folder, family, dtype, **(overrides or {}))
    source = MemorySource(checkpoint)
    shape = SlotShape.of(source.manifest(), slots=slots)
    arena = HostArena(shape.blob_bytes, host_blobs * shape.blob_bytes)
    return Ground(checkpoint, source, shape, arena, random_kept(rows, LAYERS, EXPERTS, kept_per_layer))


GROUND_OPTIONS = frozenset({"family", "dtype", "rows", "kept_per_layer", "slots", "overrides", "host_blobs"})


def split_options(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those of ``ground``, and those of the engine."""
    return (
        {name: value for name, value in options.items() if name in GROUND_OPTIONS},
        {name: value for name, value in options.items() if name not in GROUND_OPTIONS},
    )


@contextmanager
def running(bench: Bench) -> Iterator[None]:
    """Start the engine, put the patterns in force, and close it at the end."""
    bench.engine.start(bench.reports)
    try:
        bench.fill()
        yield
    finally:
        bench.engine.close()


@contextmanager
def hf_bench(folder: Path, **options: Any) -> Iterator[HfBench]:
    """The transformers engine in this process, patterns in force; closed at the end."""
    of_ground, of_engine = split_options(options)
    made = ground(folder, **of_ground)
    slot_model = load_slot_model(made.source, slots=made.shape.slots)
    engine = HfEngine(slot_model, made.arena, **of_engine)
    bench = HfBench(engine, made.arena, made.source, made.folder, made.kept, Reports(), slot_model=slot_model)
    with running(bench):
        yield bench


@contextmanager
def child_bench(folder: Path, **options: Any) -> Iterator[Bench]:
    """The same engine in a child process."""
    of_ground, of_engine = split_options(options)
    made = ground(folder, **of_ground)
    engine = child_engine(partial(tiny_engine, made.folder, made.shape.slots, made.arena, of_engine))
    bench = Bench(engine, made.arena, made.source, made.folder, made.kept, Reports())
    with running(bench):
        yield bench


def child_engine(build: Build, *, preload: Sequence[str] = ()) -> ChildEngine:
    """Forked from a server that has imported everything, ``preload`` too if it is the first: imports take most of a
    child's start.
    """
    return ChildEngine(build, context=_server(preload))


def ranked_engine(build: Callable[[Member], Build], ranks: int, *, preload: Sequence[str] = ()) -> RankedEngine:
    """The same, a process a rank."""
    return RankedEngine(build, ranks, context=_server(preload))


def _server(preload: Sequence[str]) -> ForkServerContext:
    stock = [f"transformers.models.{family}.modeling_{family}" for family in FAMILIES]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["premoe_runtime.engines.hf.engine", "premoe_runtime.packs.layout", *stock, *preload]
    )
    return context


@contextmanager
def tiny_engine(
    checkpoint: Path, slots: tuple[int, ...], arena: HostArena, options: dict[str, Any]
) -> Iterator[HfEngine]:
    """What the child builds."""
    torch.set_num_threads(1)
    yield HfEngine(load_slot_model(MemorySource(checkpoint), slots=slots), arena, **options)


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
class FrontBench:
    """The serving front before an engine over a tiny model."""

    front: Front
    engine: Engine
    source: MemorySource
    _serial: int = field(default=0, kw_only=True)

    @property
    def host(self) -> HostTier:
        """The loop's own: to be looked at while nothing happens."""
        return self.front._loop._fetches.host

    def resident(self) -> frozenset[ExpertId]:
        slots = self.front.residency().slots
        return frozenset(ExpertId(layer, e) for layer, row in enumerate(slots) for e in row if e >= 0)

    def request(
        self, pattern: KeptPattern, token_ids: list[int], active: int = TOP_K, grammar: str = "", **sampling: Any
    ) -> Request:
        self._serial += 1
        number, params = f"m{self._serial}", SamplingParams(**sampling)
        return Request(number, pattern, active, tuple(token_ids), params, grammar=grammar)

    def submit(
        self,
        pattern: KeptPattern,
        token_ids: list[int],
        *,
        gate: Callable[[TokenEvent], None] | None = None,
        **options: Any,
    ) -> tuple[Collector, Started]:
        request = self.request(pattern, token_ids, **options)
        collector = Collector(request.request_id, gate)
        started = Started(collector)
        collector.handle = self.front.generate(request, started, collector)
        return collector, started

    def run(self, pattern: KeptPattern, token_ids: list[int], **options: Any) -> Collector:
        return self.submit(pattern, token_ids, **options)[0].wait()


@dataclass
class ManagedBench(FrontBench):
    """With the slots and the model of an engine in this process."""

    engine: HfEngine
    store: SlotStore
    slot_model: SlotModel


@contextmanager
def managed_bench(
    folder: Path,
    *,
    slots: int | Sequence[int],
    max_rows: int = 8,
    host_bytes: int | None = None,
    overrides: dict[str, Any] | None = None,
    **options: Any,
) -> Iterator[ManagedBench]:
    """A front over empty slots; ``options`` go to it, but for those of the engine. Closed at the end."""
    engine_options = {
        name: options.pop(name)
        for name in ("max_sequences", "context", "prefill_tokens", "parked_bytes")
        if name in options
    }
    source = MemorySource(tiny_checkpoint(folder, **(overrides or {})))
    slot_model = load_slot_model(source, slots=slots, max_rows=max_rows)
    store = slot_model.store
    arena = HostArena(store.shape.blob_bytes, STAGING_BYTES if host_bytes is None else host_bytes)
    engine = HfEngine(slot_model, arena, **engine_options)
    front = Front(engine, store.shape, arena, source, **({"retry_seconds": ()} | options))
    try:
        yield ManagedBench(front, engine, source, store, slot_model)
    finally:
        front.close()


def pattern(name: str, *layers: range | list[int]) -> KeptPattern:
    """A pattern that keeps these experts in layer 0 and 1 (one list: in both)."""
    first, second = layers[0], layers[-1]
    return KeptPattern(name, kept_table([list(first), list(second)]))
