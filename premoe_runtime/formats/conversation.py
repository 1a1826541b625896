"""The task of a conversation's last turn, when the turns before it had tasks of their own.

What comes before a turn leaks into its routing: attention brings system message, tools and earlier turns into every
token. So a turn is looked at by itself first, as calibration prompts are, and after what comes before it only where
that says nothing: its instruction may stand in a system message, or it may go on with the turn before.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import TypeAlias

from premoe_runtime.formats.arrays import F32
from premoe_runtime.formats.choices import OnUnknown
from premoe_runtime.formats.pattern_set import PatternSet
from premoe_runtime.formats.recognition import Decision, Neighbour, decide, nearest
from premoe_runtime.formats.signature import Signatures

Asking: TypeAlias = Generator[F32, Sequence[Neighbour], Decision]
"""Yields a signature, is sent the exemplars near it, and returns the decision."""


def decide_turn(signatures: Signatures, pattern_set: PatternSet, on_unknown: OnUnknown | None = None) -> Asking:
    """Decide which pattern runs, asking only for what the decision needs; ``decide`` says what is needed of exemplars.

    The last turn's own task, where it has one. Else its task after what comes before it: that of a system message or,
    where earlier turns had a task, theirs, if by itself, too, the last turn is nearest to that one of all. Else the
    task is unknown: what comes before leaks in, and alone would make any stranger the task of the turn before it.
    """
    itself = decide((yield signatures.whole if signatures.alone is None else signatures.alone), pattern_set, on_unknown)
    if signatures.alone is None or itself.recognised:
        return itself
    after = decide((yield signatures.whole), pattern_set, on_unknown)
    if not after.recognised:
        return itself
    why = "after what comes before it"
    for turn in reversed(signatures.earlier):
        before = decide((yield turn), pattern_set)
        if before.recognised:
            if not before.task == after.task == itself.task:
                return itself
            why = "and goes on with an earlier turn"
            break
    return replace(after, reason=f"{after.reason} {why}")


def recognise_turn(pattern_set: PatternSet, signatures: Signatures, on_unknown: OnUnknown | None = None) -> Decision:
    """``decide_turn`` over ``nearest``. Raises InvalidInput when a signature does not fit the set."""
    asking = decide_turn(signatures, pattern_set, on_unknown)
    wanted = next(asking)
    while True:
        try:
            wanted = asking.send(nearest(pattern_set, wanted))
        except StopIteration as end:
            decision: Decision = end.value
            return decision
