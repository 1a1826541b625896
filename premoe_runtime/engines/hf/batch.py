"""What one step runs: a pure decision over the tokens that each sequence still has to compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pending:
    """A sequence that may run: ``remaining`` tokens are not in its KV yet (1 while it decodes), or no token is."""

    index: int
    remaining: int
    begun: bool = True


@dataclass(frozen=True, slots=True)
class Share:
    """``count`` tokens of the sequence ``index`` in one forward."""

    index: int
    count: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    """At most two forwards: one token each for all that decode, then a bounded piece of prompts."""

    decode: tuple[Share, ...]
    prefill: tuple[Share, ...]

    @property
    def forwards(self) -> tuple[tuple[Share, ...], ...]:
        return tuple(part for part in (self.decode, self.prefill) if part)


def plan_step(pending: Sequence[Pending], prefill_tokens: int) -> StepPlan:
    """Plan the next step; ``pending`` in order.

    A long prompt goes in pieces of ``prefill_tokens``, so that it holds nobody up for longer than one piece. Short
    prompts share a forward, padded to the first one's width, while the padded area stays within ``prefill_tokens`` and
    no prompt is padded by more than its own length.
    """
    decode = tuple(Share(item.index, 1) for item in pending if item.remaining == 1)
    prefill: list[Share] = []
    width = 0
    for item in pending:
        if item.remaining <= 1:
            continue
        count = min(item.remaining, width or prefill_tokens)
        if prefill and ((len(prefill) + 1) * width > prefill_tokens or 2 * count < width):
            continue
        width = width or count
        prefill.append(Share(item.index, count))
    return StepPlan(decode, tuple(prefill))


def plan_apart(pending: Sequence[Pending], prefill_tokens: int, *, whole: bool) -> tuple[tuple[Share, ...], ...]:
    """The forwards of a step of a model with state, into which no padding may go: every piece of a prompt has its own.

    A sequence that begins decodes with nobody: it has no state to read. ``whole``: prompts are not cut; one that is
    longer than ``prefill_tokens`` waits until it is first.
    """
    decode = tuple(Share(item.index, 1) for item in pending if item.remaining == 1 and item.begun)
    forwards, room = [decode] if decode else [], prefill_tokens
    for item in pending:
        if item.remaining == 1 and item.begun:
            continue
        count = item.remaining if whole else min(item.remaining, room)
        if room < max(count, 1) and room < prefill_tokens:
            break
        forwards.append((Share(item.index, count),))
        room -= count
    return tuple(forwards)
