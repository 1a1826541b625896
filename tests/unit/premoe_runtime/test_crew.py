"""Ranks of one engine: whatever comes in when, all carry out the same commands between the same steps."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny import tiny_tokenizer

from premoe_runtime.engines.base import (
    Cancel,
    Command,
    Ended,
    Logprobs,
    Pause,
    Report,
    RequestLimits,
    Resume,
    StepReport,
    Submit,
)
from premoe_runtime.engines.child.crew import Alone, Follower, Leader
from premoe_runtime.engines.choosing import Choice
from premoe_runtime.engines.params import SamplingParams
from premoe_runtime.engines.stepping import StepEngine
from premoe_runtime.engines.text import TokenText
from premoe_runtime.engines.vllm.rows import Rule
from premoe_runtime.engines.vllm.sequences import CoreSequence, CoreSequences
from premoe_runtime.formats.errors import InvalidInput

CONTEXT, WAIT_SECONDS = 24, 60.0
TEXT = TokenText(tiny_tokenizer())


@dataclass
class Core:
    """Writes down what it was told. Rank 0 alone knows the next token: ``numbers`` are its own."""

    crew: Alone
    numbers: itertools.count = field(default_factory=itertools.count)  # type: ignore[type-arg]
    log: list[tuple[Any, ...]] = field(default_factory=list)
    running: list[str] = field(default_factory=list)
    blocks: int = 6
    used: float = 0.0

    def blocks_of(self, tokens: int) -> int:
        return -(-tokens // 8)

    def add(self, name: str, sequence: CoreSequence, rule: Rule, salt: str) -> None:
        self.log.append(("add", name, tuple(sequence.tokens)))
        self.running.append(name)

    def hold(self, name: str) -> bool:
        self.log.append(("hold", name))
        self.running.remove(name)
        return True

    def resume(self, name: str) -> None:
        self.log.append(("resume", name))
        self.running.append(name)

    def drop(self, name: str, *, spoilt: bool) -> None:
        self.log.append(("drop", name, spoilt))
        if name in self.running:
            self.running.remove(name)

    def step(self) -> tuple[Mapping[str, Choice], Mapping[str, Sequence[Logprobs]]]:
        def choose() -> list[Choice]:
            assert not self.crew.rank, "another rank has chosen by itself"
            return [(self._token(), None) for _ in self.running]

        found = self.crew.agree(choose)
        self.log.append(("step", tuple(self.running), tuple(str(token) for token, _ in found)))
        return dict(zip(list(self.running), found, strict=True)), {}

    def _token(self) -> int | Exception:
        number = next(self.numbers)
        return ValueError("not finite") if number % 11 == 10 else 65 + number % 20


class Grammars:
    """``compile`` takes as long as the grammar says, in milliseconds; "bad" is none."""

    def compile(self, grammar: str) -> Any:
        if grammar == "bad":
            raise InvalidInput("no grammar")
        time.sleep(float(grammar) / 1000)
        return SimpleNamespace(accept=lambda token: token % 3 == 0)


class Heard:
    """Reports of one engine. ``ended`` once it has ended."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.ended: SimpleQueue[Ended] = SimpleQueue()

    def __call__(self, report: Report) -> None:
        self.reports.append(report)
        if isinstance(report, Ended):
            self.ended.put(report)

    def events(self) -> list[Any]:
        told = [event for each in self.reports if isinstance(each, StepReport) for event in each.events]
        return [(name, event.token_ids, event.finish, str(event.error)) for name, event in told]


def engine(crew: Alone) -> tuple[StepEngine, Core]:
    core = Core(crew)
    sequences = CoreSequences(core, TEXT, frozenset(), context=CONTEXT, most=2, rows=4, active=(2,))
    tables, arena = SimpleNamespace(device=SimpleNamespace(type="cpu")), SimpleNamespace(unlock_pages=lambda: None)
    limits = RequestLimits(CONTEXT, 512, 2)
    return StepEngine(limits, sequences, tables, SimpleNamespace(), Grammars(), arena, crew), core  # type: ignore[arg-type]


def submit(number: int, tokens: int, grammar: str, priority: int) -> Submit:
    sampling = SamplingParams(max_tokens=tokens)
    return Submit(f"r{number}", (1, 2, 3), 0, 2, sampling, grammar=grammar, priority=priority)


ids = st.frozensets(st.integers(0, 4).map("r{}".format), min_size=1, max_size=2)
commands = st.one_of(
    st.builds(
        submit, st.integers(0, 4), st.integers(1, 15), st.sampled_from(["", "", "0", "3", "bad"]), st.integers(0, 1)
    ),
    st.builds(Cancel, ids),
    st.builds(Pause, ids),
    st.builds(Resume, ids),
)


@settings(max_examples=60, deadline=None)
@given(posted=st.lists(st.tuples(commands, st.sampled_from([0.0, 0.0, 0.001])), min_size=1, max_size=20))
def test_all_ranks_do_the_same_in_the_same_steps(posted: list[tuple[Command, float]]) -> None:
    heard, told = zip(*(multiprocessing.Pipe(duplex=False) for _ in range(2)), strict=True)
    crews = [Leader(told, ""), *(Follower(pipe, rank, 3, "") for rank, pipe in enumerate(heard, 1))]
    engines, cores = zip(*map(engine, crews), strict=True)
    listeners = [Heard() for _ in engines]
    for each, listener in zip(engines, listeners, strict=True):
        each.start(listener)
    for command, pause in posted:
        engines[0].post(command)
        time.sleep(pause)
    engines[0].close()
    ends = [listener.ended.get(timeout=WAIT_SECONDS) for listener in listeners]
    for each in engines[1:]:
        each.close()
    assert [end.error for end in ends] == [None] * 3
    assert cores[1].log == cores[2].log == cores[0].log
    assert listeners[1].events() == listeners[2].events() == listeners[0].events()
