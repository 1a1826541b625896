"""The last turn of a conversation gets its own task, or keeps the one that the turns before it had."""

from __future__ import annotations

import uuid

import numpy as np
import pytest
from support.stored_patterns import FAR, direction, store_set

from premoe_runtime.formats.arrays import F32
from premoe_runtime.formats.conversation import recognise_turn
from premoe_runtime.formats.pattern_set import PatternSet
from premoe_runtime.formats.recognition import Decision, recognise
from premoe_runtime.formats.signature import Turns, unit
from premoe_runtime.storage import open_store

SORTING, SPELLING, COUNTING = (direction(axis) for axis in range(3))


@pytest.fixture(scope="module")
def stored() -> PatternSet:
    return store_set(open_store(f"memory://{uuid.uuid4()}")).pattern_set


def towards(task: F32, share: float) -> F32:
    """Between a task and what no task is near to; 0.9 or more of the task is recognised."""
    return unit((share * task + (1 - share) * FAR).astype(np.float32))


def told(decision: Decision) -> tuple[str, str]:
    return decision.kind, decision.task


def test_a_turn_is_what_it_is_by_itself(stored: PatternSet) -> None:
    leaked = Turns(SORTING, SPELLING, (SORTING, SORTING))
    assert told(recognise_turn(stored, leaked)) == ("specialist", "spelling")


def test_a_turn_that_opens_a_conversation_is_recognised_as_ever(stored: PatternSet) -> None:
    for signature in (SORTING, FAR, towards(SORTING, 0.5)):
        assert recognise_turn(stored, Turns(signature)) == recognise(stored, signature)


def test_an_instruction_in_a_system_message_counts(stored: PatternSet) -> None:
    decision = recognise_turn(stored, Turns(COUNTING, FAR))
    assert told(decision) == ("specialist", "counting")
    assert "after what comes before it" in decision.reason


@pytest.mark.parametrize("earlier", [(SORTING,), (SPELLING, SORTING), (SORTING, FAR)])
def test_a_short_question_keeps_the_task_before_it(stored: PatternSet, earlier: tuple[F32, ...]) -> None:
    asked = Turns(towards(SORTING, 0.8), towards(SORTING, 0.5), earlier)
    decision = recognise_turn(stored, asked)
    assert told(decision) == ("specialist", "sorting")
    assert decision.pattern_id == stored.member("sorting").pattern_id
    assert "goes on with an earlier turn" in decision.reason


@pytest.mark.parametrize(
    "asked",
    [
        Turns(towards(SORTING, 0.8), towards(SPELLING, 0.5), (SORTING,)),  # by itself it is nearer to another task
        Turns(towards(SPELLING, 0.8), towards(SORTING, 0.5), (SORTING,)),  # and after it
        Turns(towards(SORTING, 0.5), towards(SORTING, 0.5), (SORTING,)),  # what comes before does not even leak in
        Turns(towards(SORTING, 0.8), towards(SORTING, 0.5), (SORTING, SPELLING)),  # the task before it was another
    ],
)
def test_another_topic_does_not_keep_it(stored: PatternSet, asked: Turns[F32]) -> None:
    assert recognise_turn(stored, asked).kind == "generalist"
