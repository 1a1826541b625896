"""Gateways with the console over doubles: a wide model whose experts move, and one whose every word is hostile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from premoe_gateway.access.keyring import Keyring
from premoe_gateway.console.routes import Console
from premoe_gateway.domain import (
    Ask,
    Delta,
    Event,
    Finished,
    PatternChoice,
    Probed,
    Started,
    StoredPattern,
    Swap,
    Tokens,
    Turn,
    WorkerState,
)
from premoe_gateway.http.app import create_app
from premoe_gateway.http.server import HttpServer
from premoe_gateway.service import Gateway

from premoe_runtime.formats.choices import OnUnknown
from premoe_runtime.formats.ranking import Ranking

POLL_S = 0.2
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


@dataclass(eq=False)
class Moving:
    """A worker of ``layers`` x ``experts``: every answer makes its pattern's experts resident, and says ``words``."""

    model: str = "wide"
    address: str = "10.0.0.7:50051"
    layers: int = 48
    experts: int = 128
    words: Sequence[str] = ("Forty", "-two.")
    generation: int = 0
    states: int = 0
    residents: tuple[frozenset[int], ...] = ()
    hold: threading.Event | None = None
    """Answers wait for it after their first word."""
    cancelled: bool = False
    asked: list[list[str]] = field(default_factory=list)
    """What each conversation had said."""

    async def state(self) -> WorkerState:
        self.states += 1
        return WorkerState(
            address=self.address,
            model=self.model,
            weights_id="w",
            running=0,
            waiting=0,
            slots=self.experts // 4,
            layer_slots=(self.experts // 4,) * self.layers,
            allocation="shared",
            experts=self.experts,
            context_length=4096,
            budget=f"4/{self.experts // 4 - 2}",
            residents=self.residents,
            generation=self.generation,
            device_bytes=self.experts << 24,
            total_bytes=self.experts << 26,
        )

    async def probe(self, ask: Ask, timeout_s: float) -> Probed:
        return Probed("w", (1.0,))

    async def tokenize(self, ask: Ask, timeout_s: float, *, plain: bool) -> Tokens:
        raise NotImplementedError

    async def detokenize(self, model: str, ids: Sequence[int], *, skip_special: bool, timeout_s: float) -> str:
        raise NotImplementedError

    async def generate(self, ask: Ask, choice: PatternChoice, timeout_s: float) -> AsyncGenerator[Event, None]:
        kept = ranking(choice.pattern_id, self.layers, self.experts).experts[:, : self.experts // 4]
        now = tuple(frozenset(row.tolist()) for row in kept)
        before = self.residents or (frozenset[int](),) * self.layers
        moved = sum(len(new - old) for old, new in zip(before, now, strict=True))
        if moved:
            self.residents = now
            self.generation += 1
        self.asked.append([turn.content for turn in ask.prompt if isinstance(turn, Turn)])
        yield Started(choice, 7, Swap(moved, moved << 20, 12.5 if moved else 0.0))
        try:
            for word in self.words:
                yield Delta(word)
                while self.hold is not None and not self.hold.is_set():  # noqa: ASYNC110
                    await asyncio.sleep(0.01)  # it lies in the test's thread
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled = True
            raise
        yield Finished("stop", 7, len(self.words), 0.953, 21.0, 40.0)


@dataclass
class Tasks:
    """Retrieval that recognises every prompt as its first task. ``reads``: how often it was asked what it stores."""

    tasks: Sequence[str] = ("sql", "mail", "poems", "sums")
    layers: int = 48
    experts: int = 128
    reads: int = 0

    async def retrieve(self, probed: Probed, on_unknown: OnUnknown | None, timeout_s: float) -> PatternChoice:
        return PatternChoice("specialist", f"p-{self.tasks[0]}", self.tasks[0], 0.875, f"nearest is {self.tasks[0]}")

    async def ranking(self, pattern_id: str, timeout_s: float) -> Ranking:
        self.reads += 1
        return ranking(pattern_id, self.layers, self.experts)

    async def patterns(self, weights_id: str, timeout_s: float) -> tuple[StoredPattern, ...]:
        self.reads += 1
        stored = (StoredPattern(f"p-{task}", task, False) for task in self.tasks)
        return (*stored, StoredPattern("p-generalist", "generalist", True))


def ranking(pattern_id: str, layers: int, experts: int) -> Ranking:
    """One that depends on the id alone, and shares some experts with every other one."""
    draw = np.random.default_rng(list(pattern_id.encode()))
    common = np.random.default_rng(0).exponential(1.0, (layers, experts))
    scores = common + draw.exponential(2.0, (layers, experts)) * (draw.random((layers, 1)) + 0.5)
    order = np.argsort(-scores, axis=1, kind="stable")
    return Ranking(
        pattern_id, "task", "w", "selection", False, order, np.take_along_axis(scores, order, axis=1), "shared"
    )


@contextmanager
def served(worker: Moving, tasks: Tasks, keyring: Keyring | None = None) -> Iterator[str]:
    """The URL of a gateway with the console over them, in a thread of its own: browsers are asked without await."""
    ready, url, stop = threading.Event(), "", asyncio.Event()
    loop = asyncio.new_event_loop()

    async def run() -> None:
        nonlocal url
        gateway = Gateway([worker], tasks, on_unknown=None, timeout_s=30)
        await gateway.refresh()
        app = create_app(gateway, console=Console(gateway, POLL_S), keyring=keyring)
        http = HttpServer(app, host="127.0.0.1", port=0, grace_s=1)
        url = await http.start()
        ready.set()
        while not stop.is_set():
            await gateway.refresh()
            await asyncio.wait({asyncio.ensure_future(stop.wait())}, timeout=POLL_S)
        await http.stop(stop)

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    try:
        assert ready.wait(60)
        yield url
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
