"""The task of a conversation's last turn, when the turns before it had tasks of their own.

What comes before a turn leaks into its routing: attention brings system message, tools and earlier turns into every
token. So a turn is looked at by itself first, as calibration prompts are, and after what comes before it only where
that says nothing: its instruction may stand in a system message, or it may go on with the turn before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from premoe_runtime.formats.choices import OnUnknown
from premoe_runtime.formats.pattern_set import PatternSet
from premoe_runtime.formats.recognition import Decision, Neighbour, decide, nearest
from premoe_runtime.formats.signature import Signatures, Turns


def decide_turn(
    found: Turns[Sequence[Neighbour]], pattern_set: PatternSet, on_unknown: OnUnknown | None = None
) -> Decision:
    """Decide which pattern runs, given the exemplars near each turn; ``decide`` says what is needed of them.

    The last turn's own task, where it has one. Else its task after what comes before it: that of a system message or,
    where earlier turns had a task, theirs, if by itself, too, the last turn is nearest to that one of all. Else the
    task is unknown: what comes before leaks in, and alone would make any stranger the task of the turn before it.
    """
    itself = decide(found.whole if found.alone is None else found.alone, pattern_set, on_unknown)
    if found.alone is None or itself.recognised:
        return itself
    after = decide(found.whole, pattern_set, on_unknown)
    before = next((each for each in _decided(found.earlier, pattern_set) if each.recognised), None)
    if not after.recognised or (before is not None and not before.task == after.task == itself.task):
        return itself
    why = "after what comes before it" if before is None else "and goes on with an earlier turn"
    return replace(after, reason=f"{after.reason} {why}")


def _decided(turns: Sequence[Sequence[Neighbour]], pattern_set: PatternSet) -> Iterator[Decision]:
    """Each earlier turn's own decision, latest first."""
    return (decide(turn, pattern_set) for turn in reversed(turns))


def recognise_turn(pattern_set: PatternSet, signatures: Signatures, on_unknown: OnUnknown | None = None) -> Decision:
    """``decide_turn`` over ``nearest``. Raises InvalidInput when a signature does not fit the set."""
    return decide_turn(
        signatures.like([nearest(pattern_set, signature) for signature in signatures.all]), pattern_set, on_unknown
    )
