"""What a search samples next and which answer wins, whatever the verifier says."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from premoe_gateway.search.cost import ModelFacts, flops
from premoe_gateway.search.plan import Plan, Trial, children, ended, next_round, ranked, shares, spread

SCORES = st.none() | st.floats(0, 1)
EXPERTS = st.lists(st.integers(1, 64), min_size=1, max_size=6, unique=True).map(
    lambda found: tuple(sorted(found, reverse=True))
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    budget = draw(st.none() | st.integers(1, 500))
    enough = draw(st.none() | st.floats(0.1, 1))
    return Plan(draw(st.integers(1, 24)), draw(EXPERTS), draw(st.integers(1, 6)), budget, enough)


trials = st.lists(
    st.builds(Trial, st.just(0), st.integers(1, 4), st.integers(0, 99), SCORES, st.floats(0, 1), st.booleans()),
    max_size=12,
).map(lambda found: [Trial(i, t.experts, t.tokens, t.score, t.votes, t.whole) for i, t in enumerate(found)])


def play(plan: Plan, data: st.DataObject) -> tuple[list[Trial], int]:
    seen: list[Trial] = []
    rounds = 0
    while experts := next_round(plan, seen, rounds):
        rounds += 1
        for each in experts:
            seen.append(Trial(len(seen), each, data.draw(st.integers(0, 40)), data.draw(SCORES)))
    return seen, rounds


@given(plans(), st.data())
def test_a_search_ends_within_its_rounds_and_answers(plan: Plan, data: st.DataObject) -> None:
    seen, rounds = play(plan, data)
    assert 1 <= rounds <= plan.rounds
    assert len(seen) <= plan.answers
    assert {trial.experts for trial in seen} <= set(plan.experts)
    # Nothing ends it early but what ``ended`` says.
    assert ended(plan, seen) is not None


@given(plans(), st.data())
def test_the_first_round_is_even_and_so_are_all_where_nobody_judges(plan: Plan, data: st.DataObject) -> None:
    first = Counter(dict.fromkeys(plan.experts, 0))
    first.update(next_round(plan, [], 0))
    assert max(first.values()) - min(first.values()) <= 1
    seen = [Trial(number, each) for number, each in enumerate(next_round(plan, [], 0))]
    later = Counter(dict.fromkeys(plan.experts, 0))
    later.update(next_round(plan, seen, 1))
    assert max(later.values()) - min(later.values()) <= 1


@given(st.integers(2, 24), st.floats(0.5, 1), st.floats(0, 0.4))
def test_who_did_better_gets_no_fewer_answers(answers: int, good: float, bad: float) -> None:
    plan = Plan(answers, (4, 2), 2)
    seen = [Trial(0, 4, 1, bad), Trial(1, 2, 1, good)]
    counts = Counter(next_round(plan, seen, 1))
    assert counts[2] >= counts[4]
    assert sum(counts.values()) == answers - 2


def test_a_verifier_s_favourite_gets_more_and_nobody_is_given_up() -> None:
    seen = [Trial(0, 4, 1, 0.0), Trial(1, 4, 1, 0.0), Trial(2, 2, 1, 1.0), Trial(3, 2, 1, 1.0)]
    assert next_round(Plan(12, (4, 2), 2), seen, 1) == (4, 4, 2, 2, 2, 2, 2, 2)


@given(st.dictionaries(st.integers(1, 99), st.floats(0.01, 1), min_size=1, max_size=8), st.integers(0, 200))
def test_shares_are_those_of_the_weights_within_one(weights: dict[int, float], size: int) -> None:
    counts = shares(weights, size)
    assert sum(counts.values()) == size
    total = sum(weights.values())
    for experts, weight in weights.items():
        assert abs(counts[experts] - size * weight / total) < 1 + 1e-9


@given(trials)
def test_ranking_loses_nobody_and_a_cut_answer_never_wins(seen: list[Trial]) -> None:
    order = ranked(seen)
    assert sorted(trial.number for trial in order) == [trial.number for trial in seen]
    assert [trial.whole for trial in order] == sorted((trial.whole for trial in seen), reverse=True)
    scored = [trial.score for trial in order if trial.whole and trial.score is not None]
    assert scored == sorted(scored, reverse=True)
    assert ranked(list(reversed(seen))) == order


def test_who_has_no_score_stands_at_the_mean_of_the_others() -> None:
    seen = [Trial(0, 4, score=0.0), Trial(1, 4, score=None, votes=1.0), Trial(2, 4, score=1.0)]
    assert [trial.number for trial in ranked(seen)] == [2, 1, 0]
    # Those that were cut off from their verifier when a good one was found stand behind it.
    assert ranked([Trial(0, 4, votes=1.0), Trial(1, 2, score=1.0, votes=0.1)])[0].number == 1
    silent = [Trial(0, 4, votes=0.2), Trial(1, 3, votes=0.8), Trial(2, 4, votes=0.8)]
    assert [trial.number for trial in ranked(silent)] == [2, 1, 0]


@given(trials, st.integers(1, 12), st.integers(0, 24))
def test_the_best_unfinished_answers_go_on_evenly(seen: list[Trial], keep: int, answers: int) -> None:
    parents = Counter(children(seen, keep, answers))
    assert sum(parents.values()) == (answers if seen else 0)
    assert len(parents) <= min(keep, len(seen))
    if answers >= keep and seen:
        assert max(parents.values()) - min(parents.values()) <= 1
        worst = min(_score(seen, number) for number in parents)
        assert all(_score(seen, trial.number) <= worst for trial in seen if trial.number not in parents)


def _score(seen: list[Trial], number: int) -> float:
    scores = [trial.score for trial in seen if trial.score is not None]
    score = seen[number].score
    return score if score is not None else sum(scores) / len(scores) if scores else 0.0


def test_children_come_from_the_better_ones_first() -> None:
    seen = [Trial(0, 4, score=0.1), Trial(1, 3, score=0.9), Trial(2, 2, score=0.5)]
    assert children(seen, 2, 5) == (1, 1, 1, 2, 2)
    assert children(seen, 9, 3) == (1, 2, 0)


@pytest.mark.parametrize(
    ("plan", "seen", "why"),
    [
        (Plan(4, (2,), enough=0.9), [Trial(0, 2, score=0.9)], "score"),
        (Plan(4, (2,), budget=10), [Trial(0, 2, 6), Trial(1, 2, 4)], "budget"),
        (Plan(2, (2,)), [Trial(0, 2), Trial(1, 2)], "answers"),
        (Plan(3, (2,), budget=10, enough=1.0), [Trial(0, 2, 9, 0.9)], None),
    ],
)
def test_why_a_search_ends(plan: Plan, seen: list[Trial], why: str | None) -> None:
    assert ended(plan, seen) == why


@given(st.integers(1, 512))
def test_numbers_to_try_are_the_model_s_own_down_to_half_of_it(active: int) -> None:
    numbers = spread(active)
    assert numbers[0] == active
    assert numbers[-1] == (active + 1) // 2
    assert list(numbers) == sorted(set(numbers), reverse=True)


def test_flops_are_two_for_every_active_parameter_and_token() -> None:
    assert flops(ModelFacts(4, shared=100, expert=10), experts=3, tokens=7) == 2 * (100 + 30) * 7
    assert flops(ModelFacts(4), experts=3, tokens=7) is None
