"""Which outcomes of a soak nobody injected. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from support.soak.client import FAILED, LATE, LEFT, Answer, Outcome
from support.soak.faults import Fault

SETTLE_S = 20.0
"""How long after the expert store serves again calls may still fail for it: a worker tries a fetch for 15 s."""
KNOWN_BY = "expert store"
"""What an error names that the store's death caused."""

Known = Mapping[tuple[str, str], Answer]
"""Answers from before the load, by the call's name and the pattern."""


def complaint(outcome: Outcome, faults: Sequence[Fault], known: Known) -> str | None:
    """What is wrong with an outcome, in a line. None: it is as it should be, or an injected fault explains it.

    A client that left, and a deadline that passed, explain themselves. An error is the store's fault if it is 503, 504
    or in a stream, names the expert store, and its call was open between the kill and `SETTLE_S` after the store served
    again.
    Nothing explains another one: Redis is a cache, and nobody notices its death.
    """
    call = outcome.call
    if outcome.code == LEFT or (outcome.code == LATE and call.deadline_s is not None):
        return None
    what = f"{call.name or 'a new prompt'} ({call.path}{', a stream' if call.stream else ''})"
    if outcome.code == call.status:
        return _compared(what, outcome, known)
    if explained(outcome, faults):
        return None
    return f"{what}: {outcome.code} instead of {call.status}: {outcome.said}"


def explained(outcome: Outcome, faults: Sequence[Fault]) -> bool:
    """Whether a death of the store accounts for an error."""
    named = outcome.code in (503, 504, FAILED) and KNOWN_BY in outcome.said
    return named and any(
        fault.victim == "store" and fault.killed <= outcome.ended and outcome.began <= fault.again + SETTLE_S
        for fault in faults
    )


def _compared(what: str, outcome: Outcome, known: Known) -> str | None:
    answer = outcome.answer
    if answer is None or not outcome.call.name:
        return None
    before = known.get((outcome.call.name, answer.pattern))
    if before is None:
        return f"{what}: ran under the pattern {answer.pattern[:16]}, which it did not before the load"
    if before != answer:
        return f"{what}: {answer.text!r} ({answer.ended}), before the load {before.text!r} ({before.ended})"
    return None
