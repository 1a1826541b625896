"""Slots taken from the live pattern set, and kept sets cut within them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from premoe.patterns.v1 import patterns_pb2 as pb
from premoe_retrieval.adapters.memory import MemoryIndex
from premoe_retrieval.repository import PatternRepository
from premoe_retrieval.service import PatternService
from premoe_retrieval.servicer import PatternServicer
from premoe_servicekit.rankings import read_ranking
from premoe_worker.domain import PatternChoice
from premoe_worker.limits import Limits
from premoe_worker.split import SplitWatch, split_slots
from support.profiles import EXPERTS, LAYERS, TOP_K, WEIGHTS, profile

from premoe_runtime.formats.allocation import even_slots
from premoe_runtime.formats.arrays import existing
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.choices import Allocation, OnUnknown
from premoe_runtime.formats.errors import CorruptData, InvalidInput, NotFound, PremoeError, Unavailable
from premoe_runtime.formats.manifest import ExpertLayer, Manifest
from premoe_runtime.formats.ranking import Ranking
from premoe_runtime.formats.signature import Signatures
from premoe_runtime.offline.patterns.build import BuildOptions, BuiltSet, build_set
from premoe_runtime.offline.patterns.library import publish
from premoe_runtime.storage import open_store

BUDGET = Budget(TOP_K, 4)
LIMITS = Limits(BUDGET, BUDGET, (5, 5), "generalist")
MODEL = Manifest.model_construct(
    weights_id="w", layers=(ExpertLayer.model_construct(digests=("",) * EXPERTS),) * LAYERS
)


@dataclass
class Retrieval:
    """Answers ``layer_slots`` from a list, the last one for ever."""

    answers: list[tuple[int, ...] | PremoeError]
    asked: list[tuple[str, int, int]] = field(default_factory=list)

    async def layer_slots(self, weights_id: str, kept: int, spare: int) -> tuple[int, ...]:
        self.asked.append((weights_id, kept, spare))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, PremoeError):
            raise answer
        return answer

    async def retrieve(self, weights_id: str, signatures: Signatures, on_unknown: OnUnknown) -> PatternChoice:
        raise NotImplementedError

    async def ranking(self, pattern_id: str) -> Ranking:
        raise NotImplementedError

    async def generalist(self, weights_id: str) -> str:
        raise NotImplementedError

    async def live_tasks(self, weights_id: str) -> Mapping[str, str]:
        raise NotImplementedError

    async def first_pattern(self, weights_id: str) -> str:
        raise NotImplementedError


async def test_slots_spread_as_the_live_set_says() -> None:
    retrieval = Retrieval([(7, 3)])
    assert await split_slots(LIMITS, retrieval, MODEL, wait_s=0) == replace(LIMITS, slots=(7, 3))
    assert retrieval.asked == [("w", 4, 1)]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (NotFound("no live set"), "there was no live pattern set at the start"),
        (Unavailable("retrieval is down"), "the live pattern set could not be asked at the start (retrieval is down)"),
    ],
)
async def test_without_a_split_layers_are_equal_and_it_is_said(
    answer: PremoeError, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    limits = await split_slots(LIMITS, Retrieval([answer]), MODEL, wait_s=0)
    problem = f"{said}: every layer has 5 slots until a restart"
    assert limits == replace(LIMITS, split_problem=problem)
    assert problem in caplog.text
    watch = SplitWatch(limits, Retrieval([Unavailable("away"), (7, 3), (5, 5)]), MODEL)
    await watch.saw("a")
    assert watch.problem == problem
    await watch.saw("b")
    assert watch.problem.startswith("the live pattern set spreads slots over the layers as 7/3, this worker as 5: ")
    await watch.saw("c")
    assert watch.problem == ""


async def test_a_uniform_set_is_no_problem() -> None:
    assert await split_slots(LIMITS, Retrieval([()]), MODEL, wait_s=0) == LIMITS


async def test_a_retrieval_service_that_comes_up_later_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("premoe_worker.split.RETRY_S", 0.0)
    retrieval = Retrieval([Unavailable("not yet"), (6, 4)])
    assert (await split_slots(LIMITS, retrieval, MODEL, wait_s=5)).slots == (6, 4)


async def test_a_uniform_worker_keeps_equal_slots_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    uniform = replace(LIMITS, allocation="uniform")
    retrieval = Retrieval([(7, 3)])
    with caplog.at_level(logging.INFO):
        assert await split_slots(uniform, retrieval, MODEL, wait_s=0) == uniform
        await SplitWatch(uniform, retrieval, MODEL).saw("p")
    assert caplog.text.count("the live pattern set shares its budgets over the layers; --allocation uniform") == 1
    assert await split_slots(uniform, Retrieval([Unavailable("away")]), MODEL, wait_s=60) == uniform


async def test_nobody_is_asked_where_there_is_nothing_to_share() -> None:
    retrieval = Retrieval([(7, 3)])
    whole = replace(LIMITS, slots=(EXPERTS, EXPERTS))
    assert await split_slots(whole, retrieval, MODEL, wait_s=60) == whole
    assert await split_slots(LIMITS, None, MODEL, wait_s=60) == LIMITS
    assert retrieval.asked == []


async def test_a_later_set_with_another_split_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    retrieval = Retrieval([(7, 3), (6, 4), (6, 4), Unavailable("away"), ()])
    watch = SplitWatch(replace(LIMITS, slots=(7, 3)), retrieval, MODEL)
    await watch.saw("a")
    assert caplog.text == ""
    await watch.saw("a")
    await watch.saw("b")
    await watch.saw("c")
    await watch.saw("d")
    assert caplog.text.count("spreads slots over the layers as 6/4, this worker as 7/3") == 1
    await watch.saw("e")
    assert "spreads slots over the layers as 5, this worker as 7/3" in caplog.text
    assert len(retrieval.asked) == 5


def built(allocation: Allocation, layer_experts: tuple[int, ...] = (EXPERTS, EXPERTS)) -> BuiltSet:
    profiles = [replace(profile(task, prompts=40), layer_experts=layer_experts) for task in ("add", "rev", "json")]
    return build_set(profiles, BuildOptions(metric="seer", allocation=allocation))


@pytest.mark.parametrize("allocation", ["shared", "uniform"])
@pytest.mark.parametrize("layer_experts", [(EXPERTS, EXPERTS), (EXPERTS, 3)])
async def test_the_worker_keeps_what_the_pattern_keeps(allocation: Allocation, layer_experts: tuple[int, ...]) -> None:
    result = built(allocation, layer_experts)
    store = open_store(f"memory://split-{allocation}-{layer_experts[1]}")
    publish(store, result, live=True)
    servicer = PatternServicer(PatternService(PatternRepository(store, live_refresh_s=60), MemoryIndex()))
    context: object = None
    request = pb.ListPatternsRequest(weights_id=WEIGHTS, kept=BUDGET.kept, spare=1)
    listed = await servicer.ListPatterns(request, context)  # type: ignore[arg-type]
    assert {pattern.allocation for pattern in listed.patterns} == {allocation}
    assert (tuple(listed.layer_slots) or None) == result.pattern_set.layer_slots(BUDGET.kept, 1)
    slots = tuple(listed.layer_slots) or even_slots(BUDGET.kept + 1, layer_experts, "shared")
    for pattern in result.patterns:
        response = await servicer.GetPattern(pb.GetPatternRequest(pattern_id=pattern.pattern_id), context)  # type: ignore[arg-type]
        ranking = read_ranking(response, "retrieval")
        assert [len(layer.experts) for layer in response.layers] == list(layer_experts)
        assert np.array_equal(ranking.scores > -np.inf, existing(layer_experts))
        assert np.array_equal(ranking.kept(BUDGET, slots, "shared"), pattern.kept(BUDGET, slots))
        uniform = replace(pattern, allocation="uniform")
        assert np.array_equal(ranking.kept(BUDGET, slots, "uniform"), uniform.kept(BUDGET, slots))


def response(**fields: object) -> pb.GetPatternResponse:
    layer = pb.LayerRanking(experts=range(EXPERTS), scores=[float(EXPERTS - rank) for rank in range(EXPERTS)])
    pattern = pb.Pattern(pattern_id="p", semantics="selection", allocation="shared")
    made = pb.GetPatternResponse(pattern=pattern, layers=[layer] * LAYERS)
    for name, value in fields.items():
        setattr(made.pattern, name, value)
    return made


def test_answers_of_older_services_are_uniform() -> None:
    old = response(allocation="")
    for layer in old.layers:
        layer.ClearField("scores")
    ranking = read_ranking(old, "retrieval")
    assert ranking.allocation == "uniform"
    assert ranking.kept(BUDGET, (8, 8), "shared").sum(axis=1).tolist() == [4, 4]
    assert ranking.kept(BUDGET, (7, 3), "shared").sum(axis=1).tolist() == [5, 3]


def test_answers_that_make_no_sense_are_damage() -> None:
    with pytest.raises(CorruptData, match="unknown allocation 'even'"):
        read_ranking(response(allocation="even"), "retrieval")
    short, infinite = response(), response()
    short.layers[0].scores.pop()
    infinite.layers[1].scores[0] = float("inf")
    for broken in (short, infinite):
        with pytest.raises(CorruptData, match="one finite score an expert"):
            read_ranking(broken, "retrieval")


def test_slots_too_few_for_a_pattern_are_named() -> None:
    ranking = read_ranking(response(), "retrieval")
    with pytest.raises(InvalidInput, match="8 experts are to be kept in all, but there is room for 7"):
        ranking.kept(BUDGET, (4, 3), "shared")
