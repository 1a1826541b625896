import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.profiles import EXPERTS, profile

from premoe_runtime.formats.choices import OnUnknown
from premoe_runtime.formats.pattern_set import PatternSet
from premoe_runtime.formats.recognition import Decision, Neighbour, decide, nearest, recognise, task_scores
from premoe_runtime.formats.signature import signature, unit
from premoe_runtime.offline.patterns.build import build_set


def stored() -> PatternSet:
    """Thirty exemplars a task, compared as they are."""
    profiles = [profile(task, prompts=60) for task in ("add", "json", "rev")]
    document = build_set(profiles).pattern_set.document
    members = tuple(
        member.model_copy(update={"cutoff": 0.97, "first_exemplar": 30 * place, "exemplars": 30})
        if member.kind == "specialist"
        else member
        for place, member in enumerate(document.members)
    )
    exemplars = np.concatenate([one.signatures[:30] for one in profiles])
    return PatternSet.make(document.model_copy(update={"members": members}), exemplars)


SET = stored()
IDS = [member.pattern_id for member in SET.specialists]
POLICIES: tuple[OnUnknown, ...] = ("generalist", "full", "reject")


def without_generalist() -> PatternSet:
    document = SET.document.model_copy(
        update={"generalist_id": None, "members": tuple(m for m in SET.members if m.kind == "specialist")}
    )
    return SET.under(document)


def test_a_stored_prompt_is_recognised_and_the_opposite_is_not() -> None:
    for member in SET.specialists:
        decision = recognise(SET, SET.exemplars_of(member)[3])
        assert (decision.kind, decision.task, decision.pattern_id) == ("specialist", member.task, member.pattern_id)
        assert "reaches its cutoff" in decision.reason
    opposite = recognise(SET, -SET.exemplars[0])
    assert (opposite.kind, opposite.pattern_id) == ("generalist", SET.generalist_id)
    assert "unknown" in opposite.reason


def test_the_policy_says_what_an_unknown_task_gets() -> None:
    far = -SET.exemplars[0]
    kinds = {policy: recognise(SET, far, policy) for policy in POLICIES}
    assert {policy: decision.kind for policy, decision in kinds.items()} == {
        "generalist": "generalist",
        "full": "full",
        "reject": "reject",
    }
    assert kinds["full"].pattern_id == kinds["reject"].pattern_id == ""
    assert recognise(without_generalist(), far, "generalist").kind == "reject"


def test_the_set_brings_the_default_policy() -> None:
    rejecting = SET.under(SET.document.model_copy(update={"on_unknown": "reject"}))
    assert recognise(rejecting, -SET.exemplars[0]).kind == "reject"


def test_scores_are_means_over_the_five_nearest() -> None:
    member = SET.specialists[0]
    query = unit(np.ones(EXPERTS, np.float32))
    similarities = np.sort(SET.exemplars_of(member) @ query)[::-1]
    match = next(match for match in recognise(SET, query).matches if match.task == member.task)
    assert match.score == pytest.approx(similarities[:5].mean())
    assert match.cutoff == member.cutoff
    assert task_scores(SET.exemplars_of(member), query[None], 5)[0] == pytest.approx(match.score, abs=1e-6)


def test_a_short_answer_from_the_index_can_only_abstain() -> None:
    query = SET.exemplars[0]
    full = nearest(SET, query)
    assert decide(full, SET).kind == "specialist"
    best = decide(full, SET).pattern_id
    short = [neighbour for neighbour in full if neighbour.pattern_id == best][:2]
    assert decide(short, SET).kind == "generalist"
    assert decide([], SET).kind == "generalist"


NEIGHBOURS = st.lists(
    st.builds(Neighbour, st.sampled_from([*IDS, "stranger"]), st.floats(-1, 1)),
    max_size=40,
)


@given(NEIGHBOURS, st.sampled_from(POLICIES), st.randoms())
def test_decisions_are_lawful(neighbours: list[Neighbour], policy: OnUnknown, draw: object) -> None:
    decision = decide(neighbours, SET, policy)
    check(decision, policy)
    shuffled = list(neighbours)
    getattr(draw, "shuffle")(shuffled)  # noqa: B009
    assert decide(shuffled, SET, policy) == decision


def check(decision: Decision, policy: OnUnknown) -> None:
    scores = [match.score for match in decision.matches]
    assert scores == sorted(scores, reverse=True)
    assert {match.pattern_id for match in decision.matches} == set(IDS)
    best = decision.matches[0]
    assert (decision.task, decision.score) == (best.task, best.score)
    if best.score >= best.cutoff:
        assert (decision.kind, decision.pattern_id) == ("specialist", best.pattern_id)
    else:
        assert decision.kind == policy
        assert decision.pattern_id == (SET.generalist_id if policy == "generalist" else "")
    assert decision.reason
    assert "\n" not in decision.reason


@given(st.integers(0, len(SET.exemplars) - 1), st.integers(0, 4), st.floats(0, 1))
def test_more_similarity_never_takes_recognition_away(row: int, index: int, gain: float) -> None:
    neighbours = list(nearest(SET, SET.exemplars[row]))
    before = decide(neighbours, SET)
    assume(before.recognised)
    own = [place for place, neighbour in enumerate(neighbours) if neighbour.pattern_id == before.pattern_id][index]
    neighbours[own] = Neighbour(before.pattern_id, neighbours[own].similarity + gain)
    after = decide(neighbours, SET)
    assert (after.kind, after.pattern_id) == (before.kind, before.pattern_id)
    assert after.score >= before.score


def test_signatures_are_unit_means_of_roots() -> None:
    probabilities = np.array([[1, 0], [0.25, 0.75]], np.float32)
    made = signature([probabilities, probabilities], 2)
    root = np.array([(1 + 0.5) / 2, 0.75**0.5 / 2])
    expected = np.concatenate([root, root])
    assert np.allclose(made, expected / np.linalg.norm(expected))
    with pytest.raises(Exception, match="at least one token"):
        signature([np.zeros((0, 2), np.float32)], 2)
