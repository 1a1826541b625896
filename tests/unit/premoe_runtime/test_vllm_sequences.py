"""Which of the engine vllm's sequences runs, is held back, or gives way: over a core that makes one token for all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest
from support.tiny import tiny_tokenizer

from premoe_runtime.engines.base import Logprobs, Submit, TokenEvent
from premoe_runtime.engines.choosing import Choice
from premoe_runtime.engines.params import SamplingParams
from premoe_runtime.engines.text import TokenText
from premoe_runtime.engines.vllm.rows import Rule
from premoe_runtime.engines.vllm.sequences import CoreSequence, CoreSequences
from premoe_runtime.formats.errors import InvalidInput

BLOCK, CONTEXT = 8, 32
TEXT = TokenText(tiny_tokenizer())


@dataclass
class ScriptedCore:
    """Gives everybody who runs token 65, in order. ``log``: what it was told."""

    blocks: int
    running: list[str] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    spoilt: list[str] = field(default_factory=list)
    salts: dict[str, str] = field(default_factory=dict)
    prompts: dict[str, list[int]] = field(default_factory=dict)
    holds: bool = True
    error: Exception | None = None
    used: float = 0.0

    def blocks_of(self, tokens: int) -> int:
        return math.ceil(tokens / BLOCK)

    def add(self, name: str, sequence: CoreSequence, rule: Rule, salt: str) -> None:
        assert name not in self.prompts, "a name is new each time"
        assert rule == (sequence.request.pattern_row, sequence.request.active)
        self.running.append(name)
        self.salts[name], self.prompts[name] = salt, list(sequence.tokens)

    def hold(self, name: str) -> bool:
        if self.holds:
            self.running.remove(name)
            self.held.append(name)
        return self.holds

    def resume(self, name: str) -> None:
        self.held.remove(name)
        self.running.append(name)

    def drop(self, name: str, *, spoilt: bool) -> None:
        if spoilt:
            self.spoilt.append(name)
        (self.held if name in self.held else self.running).remove(name)

    def step(self) -> tuple[Mapping[str, Choice], Mapping[str, Sequence[Logprobs]]]:
        return dict.fromkeys(self.running, (self.error or 65, None)), {}

    @property
    def who(self) -> list[str]:
        return [name.split("/")[0] for name in self.running]


def made(core: ScriptedCore, most: int = 2) -> CoreSequences:
    return CoreSequences(core, TEXT, frozenset(), context=CONTEXT, most=most, rows=4, active=(2, 4))


@pytest.fixture
def core() -> ScriptedCore:
    """Room for three of the longest."""
    return ScriptedCore(3 * CONTEXT // BLOCK)


def submit(number: int, length: int = 4, tokens: int = 100) -> Submit:
    return Submit(f"r{number}", (1,) * length, 0, 4, SamplingParams(max_tokens=tokens))


def events(sequences: CoreSequences, number: int) -> list[TokenEvent]:
    return [event for name, event in sequences.report().events if name == f"r{number}"]


def test_they_come_in_as_they_arrived_and_the_next_follows_an_end(core: ScriptedCore) -> None:
    sequences = made(core)
    for number in range(3):
        sequences.add(submit(number, tokens=2 if number == 0 else 100))
    sequences.step()
    assert core.who == ["r0", "r1"]
    sequences.step()
    assert events(sequences, 0)[-1].finish == "length"
    sequences.step()
    assert core.who == ["r1", "r2"]


def test_of_those_who_wait_the_smallest_priority_comes_in_first(core: ScriptedCore) -> None:
    sequences = made(core, most=1)
    sequences.add(submit(0, tokens=3))
    sequences.step()
    sequences.add(replace(submit(1), priority=1))
    sequences.add(submit(2))
    sequences.step()
    assert core.who == ["r0"]
    for _ in range(2):
        sequences.step()
    assert core.who == ["r2"]
    sequences.cancel(frozenset({"r2"}))
    sequences.step()
    assert core.who == ["r1"]


def test_a_paused_one_is_held_another_runs_and_it_goes_on_where_it_was(core: ScriptedCore) -> None:
    sequences = made(core, most=1)
    sequences.add(submit(0))
    sequences.step()
    sequences.set_paused(frozenset({"r0"}), True)
    sequences.add(submit(1, tokens=1))
    sequences.step()
    assert core.held == ["r0/0"]
    sequences.set_paused(frozenset({"r0"}), False)
    sequences.step()
    assert (core.running, core.held) == (["r0/0"], [])


def test_without_room_the_paused_one_that_came_last_comes_in_anew_with_all_its_tokens(core: ScriptedCore) -> None:
    sequences = made(core, most=3)
    for number in range(3):
        sequences.add(submit(number))
    sequences.step()
    sequences.set_paused(frozenset({"r1", "r2"}), True)
    sequences.add(submit(3))
    sequences.step()
    assert (core.who, core.held) == (["r0", "r3"], ["r1/1"])
    sequences.cancel(frozenset({"r3"}))
    sequences.set_paused(frozenset({"r1", "r2"}), False)
    sequences.step()
    assert core.running == ["r0/0", "r1/1", "r2/4"]
    assert core.prompts["r2/4"] == [1, 1, 1, 1, 65]


def test_one_without_kv_worth_keeping_comes_in_anew(core: ScriptedCore) -> None:
    sequences = made(core)
    sequences.add(submit(0))
    sequences.step()
    core.holds = False
    sequences.set_paused(frozenset({"r0"}), True)
    assert (core.running, core.held) == ([], [])
    sequences.set_paused(frozenset({"r0"}), False)
    sequences.step()
    assert core.running == ["r0/1"]


def test_held_ones_that_may_go_on_do_so_past_one_that_has_no_room(core: ScriptedCore) -> None:
    sequences = made(core, most=3)
    core.holds = False
    for number in range(4):
        sequences.add(submit(number))
    sequences.set_paused(frozenset({"r0"}), True)
    sequences.step()
    assert core.who == ["r1", "r2", "r3"]
    core.holds = True
    sequences.set_paused(frozenset({"r2", "r3"}), True)
    sequences.set_paused(frozenset({"r0", "r2", "r3"}), False)
    sequences.step()
    assert core.who == ["r1", "r2", "r3"]


def test_nothing_is_left_behind(core: ScriptedCore) -> None:
    sequences = made(core)
    for number in range(6):
        sequences.add(submit(number))
    sequences.step()
    sequences.set_paused(frozenset({"r0"}), True)
    sequences.step()
    core.error = RuntimeError("no")
    sequences.step()
    sequences.cancel_all()
    assert (core.running, core.held, sequences._room, sequences._named) == ([], [], core.blocks, {})
    assert not sequences.can_step


def test_an_error_is_the_end_of_its_own_sequence(core: ScriptedCore) -> None:
    sequences = made(core)
    sequences.add(submit(0))
    core.error = InvalidInput("no token", reason="NONE")
    sequences.step()
    assert events(sequences, 0)[-1].error is core.error
    assert core.spoilt == ["r0/0"]


def test_prefixes_are_shared_under_a_kv_key_only(core: ScriptedCore) -> None:
    sequences = made(core)
    sequences.add(replace(submit(0), kv_key="a pattern and a tenant"))
    sequences.add(submit(1))
    sequences.step()
    assert core.salts == {"r0/0": "a pattern and a tenant", "r1/1": "r1/1"}


@pytest.mark.parametrize(("row", "active", "reason"), [(4, 4, "ROW_UNKNOWN"), (-1, 4, "ROW_UNKNOWN"), (0, 3, "ACTIVE")])
def test_rules_that_no_step_could_obey_are_refused(core: ScriptedCore, row: int, active: int, reason: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        made(core).add(replace(submit(0), pattern_row=row, active=active))
    assert caught.value.reason.startswith(reason)
