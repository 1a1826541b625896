"""What a worker denies and what requests do, together; nobody is given back what the worker denies."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from premoe_worker.denials import Denials, Denied
from premoe_worker.domain import PatternChoice
from premoe_worker.limits import Limits
from premoe_worker.patterns import Patterns

from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.choices import OnUnknown
from premoe_runtime.formats.errors import InvalidInput, NotFound, PremoeError, Unavailable
from premoe_runtime.formats.manifest import ExpertLayer, Manifest, RouterSpec
from premoe_runtime.formats.ranking import Ranking
from premoe_runtime.formats.signature import Signatures
from premoe_runtime.serving.turns import kv_key

EXPERTS = 8
MODEL = Manifest.model_construct(
    weights_id="w",
    top_k=2,
    num_experts=EXPERTS,
    router=RouterSpec(score="softmax", renormalise=True),
    layers=(ExpertLayer.model_construct(digests=("",) * EXPERTS),) * 2,
)
FLAT = np.ones((2, EXPERTS))


def ranking(task: str, own: tuple[int, ...], *, shared: tuple[int, ...] = ()) -> Ranking:
    """A task that needs the experts ``own`` of both layers, and the ``shared`` ones as much."""
    scores = np.full((2, EXPERTS), 1e-3)
    scores[:, [*own, *shared]] = 1.0
    experts = np.argsort(-scores, axis=1, kind="stable")
    ordered = np.take_along_axis(scores, experts, axis=1)
    return Ranking(task * 64, task, "w", "selection", False, experts, ordered, "uniform")


class Live:
    """A retrieval service with tasks a (experts 0, 1), b (2, 3) and c (4, 5); 6 and 7 are everybody's."""

    def __init__(self, *tasks: Ranking) -> None:
        found = tasks or (ranking("a", (0, 1)), ranking("b", (2, 3)), ranking("c", (4, 5), shared=(6, 7)))
        self.rankings = {each.pattern_id: each for each in found}
        self.error: PremoeError | None = None

    async def live_tasks(self, weights_id: str) -> Mapping[str, str]:
        if self.error is not None:
            raise self.error
        return {**{each.task: each.pattern_id for each in self.rankings.values()}, "generalist": "g" * 64}

    async def ranking(self, pattern_id: str) -> Ranking:
        return self.rankings[pattern_id]

    async def retrieve(self, weights_id: str, signatures: Signatures, on_unknown: OnUnknown) -> PatternChoice:
        raise NotImplementedError

    async def generalist(self, weights_id: str) -> str:
        raise NotImplementedError

    async def layer_slots(self, weights_id: str, kept: int, spare: int) -> tuple[int, ...]:
        return ()

    async def first_pattern(self, weights_id: str) -> str:
        return next(iter(self.rankings))


def experts(denied: Denied | None) -> list[int]:
    assert denied is not None
    assert (denied.experts[0] == denied.experts[1]).all()
    return [int(each) for each in np.flatnonzero(denied.experts[0])]


async def test_a_request_denies_what_it_names_and_nothing_by_default() -> None:
    denials = Denials((), MODEL)
    assert await denials.of((), Live()) is None
    found = await denials.of(("a",), Live())
    assert (experts(found), found and found.tasks, found and found.asked) == ([0, 1], ("a",), True)


async def test_the_worker_denies_whatever_is_asked_and_a_request_adds_to_it() -> None:
    denials, live = Denials(("a",), MODEL), Live()
    for asked in ((), ("a",)):
        found = await denials.of(asked, live)
        assert (experts(found), found and found.asked) == ([0, 1], False)
    both = await denials.of(("b",), live)
    assert (experts(both), both and both.tasks) == ([0, 1, 2, 3], ("a", "b"))
    assert await denials.of(("b",), live) is both


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.floats(0, 100, width=32), min_size=2 * EXPERTS, max_size=2 * EXPERTS), min_size=4, max_size=4)
)
def test_no_request_gets_back_what_the_worker_denies(scores: list[list[float]]) -> None:
    rankings = []
    for task, values in zip("abcd", scores, strict=True):
        table = np.array(values).reshape(2, EXPERTS)
        order = np.argsort(-table, axis=1, kind="stable")
        ordered = np.take_along_axis(table, order, axis=1)
        rankings.append(Ranking(task, task, "w", "selection", False, order, ordered, "shared"))
    denials = Denials(("a",), MODEL)
    try:
        alone = denials._found(frozenset("a"), tuple(rankings))
        both = denials._joined(frozenset("ab"), tuple(rankings), alone)
    except InvalidInput:
        return
    assert (both.experts >= alone.experts).all()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("zzz",), "has no task 'zzz'; it has a, b, c"),
        (("generalist",), "has no task 'generalist'"),
        (("a", "b", "c"), "these are all tasks"),
        (tuple(map(str, range(65))), "at most 64 tasks, not 65"),
    ],
)
async def test_what_a_request_cannot_deny_is_its_own_mistake(asked: tuple[str, ...], message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        await Denials((), MODEL).of(asked, Live())
    assert caught.value.reason == "DENY_INVALID"


@pytest.mark.parametrize("always", [("zzz",), ("a", "b", "c")])
async def test_a_worker_that_cannot_tell_what_it_denies_runs_nothing(always: tuple[str, ...]) -> None:
    for asked in ((), ("b",)):
        with pytest.raises(Unavailable, match="this worker denies") as caught:
            await Denials(always, MODEL).of(asked, Live())
        assert caught.value.reason == "DENY_UNAVAILABLE"


async def test_without_a_live_set_a_request_is_refused_and_a_worker_waits() -> None:
    live = Live()
    live.error = NotFound("there is no live set of these weights", reason="NO_LIVE_SET")
    with pytest.raises(InvalidInput, match="no tasks to deny"):
        await Denials((), MODEL).of(("a",), live)
    with pytest.raises(Unavailable, match="cannot tell"):
        await Denials(("a",), MODEL).of((), live)


async def test_what_a_pattern_keeps_of_a_denied_task_gives_way_to_its_next_best() -> None:
    budget, live = Budget(2, 4), Live()
    patterns = Patterns(live, Limits(budget, budget, (6, 6), "generalist", "uniform"), MODEL)
    choice = PatternChoice("specialist", "c" * 64)
    _, plain, _ = await patterns.resolve(choice)
    denied = await patterns.denied(("c",))
    _, without, _ = await patterns.resolve(choice, denied)
    assert [np.flatnonzero(row).tolist() for row in plain.kept] == [[4, 5, 6, 7]] * 2
    assert [np.flatnonzero(row).tolist() for row in without.kept] == [[0, 1, 2, 3]] * 2
    assert kv_key(without.key, 2, "w") != kv_key(plain.key, 2, "w"), "prefixes are never shared"
    assert (await patterns.resolve(choice, denied))[1] is without
    assert (without.one_request, plain.one_request) == (True, False)


async def test_a_pattern_that_keeps_none_of_the_denied_experts_stays_as_it_is() -> None:
    budget = Budget(2, 4)
    patterns = Patterns(Live(), Limits(budget, budget, (6, 6), "generalist", "uniform"), MODEL)
    choice = PatternChoice("specialist", "c" * 64)
    denied = await patterns.denied(("b",))
    assert (await patterns.resolve(choice, denied))[1].key == (await patterns.resolve(choice))[1].key
    assert (await patterns.resolve(PatternChoice("full"), denied))[1].counts.tolist() == [6, 6]


async def test_too_few_experts_are_refused_with_the_reason() -> None:
    budget = Budget(2, 4)
    limits = Limits(budget, budget, (6, 6), "generalist", "uniform")
    most = np.ones((2, EXPERTS), dtype=np.bool_)
    most[:, 0] = False
    for choice in (PatternChoice("full"), PatternChoice("specialist", "c" * 64)):
        with pytest.raises(InvalidInput, match="deny: without the experts of a, b MoE layer 0 has 1, but a token"):
            await Patterns(Live(), limits, MODEL).resolve(choice, Denied(("a", "b"), most, asked=True))
        with pytest.raises(PremoeError) as caught:
            await Patterns(Live(), limits, MODEL).resolve(choice, Denied(("a", "b"), most, asked=False))
        assert not isinstance(caught.value, InvalidInput), "of what the worker alone denies nobody asked"
