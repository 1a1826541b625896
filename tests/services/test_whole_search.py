"""Searches over the number of active experts: the real openai package against a whole mesh."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from premoe_gateway.adapters.retrieval import GrpcRetrieval
from premoe_gateway.adapters.worker import GrpcWorker
from premoe_gateway.domain import Ask, Delta, Sampling, Turn
from premoe_gateway.search.executor import Searcher
from premoe_gateway.search.order import SearchOrder, Steps
from premoe_gateway.search.verifiers.named import NamedVerifiers
from premoe_gateway.search.verifiers.opening import Verifiers
from premoe_gateway.service import Gateway
from premoe_local.mesh import Mesh
from premoe_servicekit.clients import channel
from support.mesh import prompts

pytestmark = pytest.mark.timeout(300)  # every mesh is four processes, and a worker imports torch


def search(mesh: Mesh, n: int, **fields: Any) -> Any:
    with openai.OpenAI(base_url=f"{mesh.url}/v1", api_key="none", max_retries=0) as api:
        return api.chat.completions.create(
            model=mesh.model_name,
            messages=[{"role": "user", "content": prompts("digits", 1)[0]}],
            n=n,
            max_tokens=6,
            seed=1,
            extra_body={"pattern": "digits", "premoe": {"search": fields}},
        )


def test_a_search_spreads_over_the_budget_s_experts_and_says_what_each_answer_cost(mesh: Mesh) -> None:
    answer = search(mesh, 4, rounds=1)
    found = answer.premoe["search"]
    assert len(answer.choices) == 4
    assert [each["active_experts"] for each in found["answers"]] == [2, 2, 1, 1]
    by_experts = {each["active_experts"]: each for each in found["answers"]}
    prompt = answer.usage.prompt_tokens
    cost = {k: each["flops"] / (prompt + each["completion_tokens"]) for k, each in by_experts.items()}
    assert 0 < cost[1] < cost[2] < 2 * cost[1]
    assert answer.usage.completion_tokens == sum(each["completion_tokens"] for each in found["answers"])
    assert answer.choices[0].premoe["task"] == "digits"


def test_the_first_answer_that_fits_ends_it(mesh: Mesh) -> None:
    answer = search(mesh, 8, verifier={"type": "regex", "pattern": "."})
    found = answer.premoe["search"]
    assert (found["ended"], found["verified"]) == ("score", True)
    assert found["answers"][answer.choices[0].index]["state"] in ("whole", "cut")
    assert len(found["answers"]) == 4


class Silent(Verifiers):
    """Nobody judges: the first one goes on."""

    async def of(self, wanted: object, question: str, *, unfinished: bool = False) -> None:
        return None


async def test_an_answer_that_grows_in_steps_is_the_answer(mesh: Mesh) -> None:
    """Prefixes as token ids: greedy steps say what one greedy answer says."""
    async with channel(mesh.worker_addresses[0]) as worker, channel(mesh.retrieval_address) as retrieval:
        gateway = Gateway(
            [GrpcWorker(mesh.worker_addresses[0], worker)],
            GrpcRetrieval(mesh.retrieval_address, retrieval),
            on_unknown=None,
            timeout_s=120,
        )
        await gateway.refresh()
        turns = (Turn("user", prompts("digits", 1)[0]),)
        ask = Ask(mesh.model_name, turns, Sampling(max_tokens=40, temperature=0, ignore_eos=True), "digits", 2)
        choice = (await gateway.recognise(ask)).choice
        whole = "".join([event.text async for event in gateway.generate(ask, choice) if isinstance(event, Delta)])
        searcher = Searcher(gateway, Silent(NamedVerifiers()), most=2, timeout_s=120)
        order = SearchOrder((2,), steps=Steps(16, 1))
        outcome = await searcher.run(lambda number: ask, 2, choice, order, 2)
    assert outcome.rounds == 3
    # A random model writes bytes that make no character; where a step ends in such ones their mark is left out.
    told = [found.text.replace("\ufffd", "") for found in outcome.shown]
    assert told == [whole.replace("\ufffd", "")] * 2


def test_more_experts_than_the_model_has_are_refused_by_name(mesh: Mesh) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        search(mesh, 2, active_experts=[99])
    assert caught.value.param == "active_experts"
