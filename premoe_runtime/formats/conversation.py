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
from premoe_runtime.formats.recognition import Decision, Match, Neighbour, decide, nearest
from premoe_runtime.formats.signature import Signatures, Turns

REACH = 1.5
"""How many times as far as its cutoff a task may be from a turn for the conversation to keep it."""


def decide_turn(
    found: Turns[Sequence[Neighbour]], pattern_set: PatternSet, on_unknown: OnUnknown | None = None
) -> Decision:
    """Decide which pattern runs, given the exemplars near each turn; ``decide`` says what is needed of them.

    The task of the last turn by itself; else that of the last turn after what comes before it; else a conversation
    keeps the task that its turns had last, if that is the nearest of all and not much farther than its cutoff; else
    the task is unknown.
    """
    itself = decide(found.whole if found.alone is None else found.alone, pattern_set, on_unknown)
    if found.alone is None or itself.recognised:
        return itself
    after = decide(found.whole, pattern_set, on_unknown)
    if after.recognised:
        return replace(after, reason=f"{after.reason} after what comes before it")
    before = next((each for each in _decided(found.earlier, pattern_set) if each.recognised), None)
    nearest_now = next(iter(after.matches), None)
    if before is None or nearest_now is None or not _may_keep(before, nearest_now):
        return itself
    reason = f"keeps task {before.task} of an earlier turn: score {nearest_now.score:.4f} after it"
    return Decision("specialist", before.pattern_id, before.task, nearest_now.score, reason, after.matches)


def _decided(turns: Sequence[Sequence[Neighbour]], pattern_set: PatternSet) -> Iterator[Decision]:
    """Each earlier turn's own decision, latest first."""
    return (decide(turn, pattern_set) for turn in reversed(turns))


def _may_keep(before: Decision, now: Match) -> bool:
    return now.pattern_id == before.pattern_id and 1 - now.score <= REACH * (1 - now.cutoff)


def recognise_turn(pattern_set: PatternSet, signatures: Signatures, on_unknown: OnUnknown | None = None) -> Decision:
    """``decide_turn`` over ``nearest``. Raises InvalidInput when a signature does not fit the set."""
    return decide_turn(
        signatures.like([nearest(pattern_set, signature) for signature in signatures.all]), pattern_set, on_unknown
    )
