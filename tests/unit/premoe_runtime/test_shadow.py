"""What a candidate set would have decided on recorded signatures."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from support.stored_patterns import FAR, TASKS, StoredSet, store_set

from premoe_runtime.formats.arrays import F32
from premoe_runtime.formats.conversation import recognise_turn
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.pattern_set import PatternSet
from premoe_runtime.formats.recognition import recognise
from premoe_runtime.formats.signature import Signatures, unit
from premoe_runtime.offline.patterns.shadow import UNKNOWN, Comparison, Sample, check_same_signatures, trials
from premoe_runtime.storage import open_store


@pytest.fixture(scope="module")
def stored() -> StoredSet:
    return store_set(open_store("memory://shadow"))


def sample(live: PatternSet, signature: F32, at: float = 0.0) -> Sample:
    """As a retrieval with this live set would have recorded it."""
    decision = recognise(live, signature)
    task = decision.task if decision.recognised else UNKNOWN
    return Sample(at, live.set_id, Signatures(signature), task, decision.task, decision.score)


def altered(live: PatternSet, **tasks: Mapping[str, object]) -> PatternSet:
    """The set with other fields of some members."""
    members = [member.model_copy(update=tasks.get(member.task, {})) for member in live.members]
    return live.under(live.document.model_copy(update={"members": tuple(members)}))


def test_every_kind_of_change_is_counted_by_task(stored: StoredSet) -> None:
    live = stored.pattern_set
    # In the candidate sorting is called ordering, spelling is out of reach and counting reaches everything.
    candidate = altered(live, sorting={"task": "ordering"}, spelling={"cutoff": 2.0}, counting={"cutoff": -1.0})
    signatures = [*(stored.near(task) for task in TASKS), stored.near("spelling"), -stored.near("sorting")]
    comparison = Comparison(most_examples=1)
    for at, signature in enumerate(signatures):
        (trial,) = trials(candidate, [sample(live, signature, float(at))])
        comparison.note(trial)
    assert comparison.signatures == 5
    assert dict(comparison.sets) == {live.set_id: 5}
    moves = dict(comparison.moves)
    assert moves.pop(("sorting", "ordering")) == 1
    assert moves.pop(("spelling", UNKNOWN)) == 2
    assert moves.pop(("counting", "counting")) == 1
    ((before, now),) = moves
    assert (before, now) in {(UNKNOWN, "counting"), (UNKNOWN, UNKNOWN)}
    tasks = {task: dict(outcomes) for task, outcomes in comparison.tasks()}
    assert list(tasks) == ["counting", "sorting", "spelling", UNKNOWN]
    assert tasks["sorting"] == {"other": 1}
    assert tasks["spelling"] == {"lost": 2}
    assert tasks["counting"] == {"same": 1}
    assert comparison.changes[0] == (("spelling", UNKNOWN), 2)
    (example,) = comparison.examples["spelling", UNKNOWN]
    assert (example.sample.at, example.decision.matches[0].cutoff) == (1.0, 2.0)
    assert sum(comparison.outcomes.values()) == 5


def test_what_was_unknown_may_be_recognised(stored: StoredSet) -> None:
    live = stored.pattern_set
    candidate = altered(live, **{task: {"cutoff": -1.0} for task in TASKS})
    comparison = Comparison()
    for trial in trials(candidate, [sample(live, FAR)]):
        comparison.note(trial)
    ((_, now),) = comparison.moves
    assert now in TASKS
    assert dict(comparison.outcomes) == {"gained": 1}


def test_the_live_set_itself_decides_alike(stored: StoredSet) -> None:
    comparison = Comparison()
    for trial in trials(
        stored.pattern_set, [sample(stored.pattern_set, each) for each in (FAR, stored.near("sorting"))]
    ):
        comparison.note(trial)
    assert dict(comparison.outcomes) == {"same": 2}
    assert (comparison.changes, comparison.examples) == ([], {})


def test_a_conversation_is_decided_as_retrieval_would(stored: StoredSet) -> None:
    live = stored.pattern_set
    after, alone = (unit((FAR + share * stored.near("sorting")).astype(np.float32)) for share in (4, 1))
    talk = Signatures(after, alone, (stored.near("sorting"),))
    assert recognise_turn(live, talk).task == "sorting"
    decided = Sample(0.0, live.set_id, talk, "sorting", "sorting", 0.0)
    assert [trial.task for trial in trials(live, [decided])] == ["sorting"]
    candidate = altered(live, sorting={"cutoff": 2.0})
    assert [trial.task for trial in trials(candidate, [decided])] == [UNKNOWN]


def test_signatures_of_another_kind_are_refused(stored: StoredSet) -> None:
    live = stored.pattern_set
    spec = live.document.signature.model_copy(update={"layers": (0, 1)})
    other = PatternSet.make(live.document.model_copy(update={"signature": spec}), live.exemplars)
    with pytest.raises(InvalidInput, match=r"layers \[0, 1\] with 16 values, not \[0\] with 16"):
        check_same_signatures(other, live)
    check_same_signatures(live, live)
    with pytest.raises(InvalidInput, match="signature has 3 values"):
        list(trials(live, [Sample(0.0, "s", Signatures(FAR[:3]), "", "", 0.0)]))
