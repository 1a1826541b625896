"""The sequences of the engine vllm: which of them vLLM has, runs or holds back. What a step computes, vLLM decides."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from enum import Enum
from typing import Protocol

from premoe_runtime.engines.base import Logprobs, Submit
from premoe_runtime.engines.choosing import Choice
from premoe_runtime.engines.sequence import RunningSequence
from premoe_runtime.engines.sequences import Sequences
from premoe_runtime.engines.text import TokenText
from premoe_runtime.engines.vllm.rows import Rule
from premoe_runtime.formats.errors import InvalidInput


class Place(Enum):
    """Where a sequence is."""

    OUT = "out"
    """vLLM does not know it."""
    RUNNING = "running"
    HELD = "held"
    """vLLM has its keys and values, and does not run it."""


class CoreSequence(RunningSequence):
    """``name``: under which vLLM has it, new each time."""

    name = ""
    place = Place.OUT


class Core(Protocol):
    """What is asked of vLLM between two steps: ``core.VllmCore``."""

    @property
    def blocks(self) -> int:
        """Blocks of KV memory."""
        ...

    @property
    def used(self) -> float:
        """Share of them that requests hold."""
        ...

    def blocks_of(self, tokens: int) -> int: ...

    def add(self, name: str, sequence: CoreSequence, rule: Rule, salt: str) -> None: ...

    def hold(self, name: str) -> bool:
        """Keep it out of steps, with its KV. False: it has none worth keeping."""
        ...

    def resume(self, name: str) -> None: ...

    def drop(self, name: str, *, spoilt: bool) -> None:
        """``spoilt``: its keys and values may be no numbers, so nobody may use them again."""
        ...

    def step(self) -> tuple[Mapping[str, Choice], Mapping[str, Sequence[Logprobs]]]:
        """What was chosen, and the likelihoods of prompts that are through, by name."""
        ...


class CoreSequences(Sequences[CoreSequence]):
    """At most ``most`` run at once, let in by priority and arrival, and no more than can end without room taken from
    another.

    A paused one stays in the KV until its room is needed, and then comes in anew. ``rows``: of the mask table;
    ``active``: numbers of experts that a token may use.
    """

    def __init__(
        self,
        core: Core,
        text: TokenText,
        eos_ids: frozenset[int],
        *,
        context: int,
        most: int,
        rows: int,
        active: Collection[int],
    ) -> None:
        super().__init__()
        self._core, self._text, self._eos_ids = core, text, eos_ids
        self._context, self._most, self._rows, self._active = context, most, rows, sorted(active)
        self._names = itertools.count()
        self._named: dict[str, CoreSequence] = {}
        self._room = core.blocks

    @property
    def kv_used(self) -> float:
        return self._core.used

    def named(self, name: str) -> CoreSequence:
        return self._named[name]

    def count_prompt(self, tokens: int) -> None:
        """So many tokens of prompts are new in the KV."""
        self._prompt_tokens += tokens

    def set_paused(self, request_ids: frozenset[str], paused: bool) -> None:
        super().set_paused(request_ids, paused)
        for sequence in self._of(request_ids) if paused else ():
            if sequence.place is Place.RUNNING:
                if self._core.hold(sequence.name):
                    sequence.place = Place.HELD
                else:
                    self._take_out(sequence)

    def step(self) -> None:
        self._let_in()
        if not any(map(self._runs, self._sequences.values())):
            return
        self._steps += 1
        choices, prompts = self._core.step()
        for name, known in prompts.items():
            self._named[name].tell_prompt(known)
        for name, choice in choices.items():
            self._take(self._named[name], choice)

    def _made(self, request: Submit) -> CoreSequence:
        # Whatever raises in a step of vLLM ends it for everybody.
        if not 0 <= request.pattern_row < self._rows:
            raise InvalidInput(
                f"mask row {request.pattern_row} does not exist; the table has {self._rows}", reason="ROW_UNKNOWN"
            )
        if request.active not in self._active:
            raise InvalidInput(
                f"{request.active} active experts asked for, but this engine was started for "
                f"{', '.join(map(str, self._active))}",
                reason="ACTIVE_EXPERTS_INVALID",
            )
        return CoreSequence(request, self._text, self._eos_ids, self._context)

    def _runs(self, sequence: CoreSequence) -> bool:
        return sequence.place is Place.RUNNING

    def _free(self, sequence: CoreSequence, *, failed: bool) -> None:
        if sequence.place is not Place.OUT:
            self._take_out(sequence, spoilt=failed)

    def _let_in(self) -> None:
        free, crowded = self._most - sum(map(self._runs, self._sequences.values())), False
        for sequence in self._in_order():
            if free <= 0:
                return
            if not sequence.can_run or sequence.place is Place.RUNNING:
                continue
            if sequence.place is Place.HELD:
                self._core.resume(sequence.name)
            elif crowded or not self._made_room(sequence):
                # Those behind it may go on, but not come in.
                crowded = True
                continue
            else:
                self._bring_in(sequence)
            sequence.place = Place.RUNNING
            free -= 1

    def _made_room(self, sequence: CoreSequence) -> bool:
        """Whether it can run to its end; paused ones give way, the last that came first."""
        needed = self._blocks_of(sequence)
        for other in reversed(self._in_order()):
            if self._room >= needed:
                break
            if other.paused and other.place is Place.HELD:
                self._take_out(other)
        return self._room >= needed

    def _blocks_of(self, sequence: CoreSequence) -> int:
        return min(self._core.blocks, self._core.blocks_of(sequence.longest))

    def _bring_in(self, sequence: CoreSequence) -> None:
        request = sequence.request
        sequence.name = f"{request.request_id}/{next(self._names)}"
        self._named[sequence.name] = sequence
        self._room -= self._blocks_of(sequence)
        rule = Rule(request.pattern_row, request.active)
        self._core.add(sequence.name, sequence, rule, request.kv_key or sequence.name)

    def _take_out(self, sequence: CoreSequence, *, spoilt: bool = False) -> None:
        self._core.drop(sequence.name, spoilt=spoilt)
        del self._named[sequence.name]
        self._room += self._blocks_of(sequence)
        sequence.name, sequence.place = "", Place.OUT
