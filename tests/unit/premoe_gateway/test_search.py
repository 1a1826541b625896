"""A search over HTTP, and what ends one: workers and verifiers that are scripted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from premoe_gateway.access.keyring import Keyring
from premoe_gateway.domain import Ask, Delta, Event, Finished, PatternChoice, Sampling, Started, Swap, WorkerState
from premoe_gateway.http.app import create_app
from premoe_gateway.search.executor import Searcher
from premoe_gateway.search.order import SearchOrder
from premoe_gateway.search.verifiers.named import NamedVerifiers
from premoe_gateway.search.verifiers.opening import Verifiers
from premoe_gateway.service import Gateway
from support.gateway_doubles import MODEL, EchoWorker, OneTask
from support.keys import write_keys
from support.request_fuzz import check

from premoe_runtime.formats.errors import Exhausted, InvalidInput, PremoeError, Unavailable

MOST = 12


@dataclass(eq=False)
class Scripted(EchoWorker):
    """Says what ``says`` makes of the active experts and the number of the request, a word a token."""

    says: Callable[[int, int], str] = lambda experts, number: f"{experts} experts"
    fails: dict[int, PremoeError] = field(default_factory=dict)
    """By number of the request."""
    hangs: set[int] = field(default_factory=set)
    """Requests that stop after their first token."""
    asked: list[Ask] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    cancelled: int = 0

    async def state(self) -> WorkerState:
        return replace(await super().state(), budget="4/8", shared_parameters=100, expert_parameters=10)

    async def generate(self, ask: Ask, choice: PatternChoice, timeout_s: float) -> AsyncGenerator[Event, None]:
        number = len(self.asked)
        self.asked.append(ask)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            if number in self.fails:
                raise self.fails[number]
            yield Started(choice, 5, Swap(0, 0, 0.0))
            words = self.says(ask.active_experts or 0, number).split()
            for place, word in enumerate(words):
                await asyncio.sleep(0)
                yield Delta(f"{' ' * (place > 0)}{word}")
                if number in self.hangs:
                    await asyncio.Event().wait()
            yield Finished("stop", 5, len(words), 1.0, 0.0, 0.0)
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise
        finally:
            self.running -= 1


async def gateway_over(worker: Scripted) -> Gateway:
    gateway = Gateway([worker], OneTask(), on_unknown=None, timeout_s=60)
    await gateway.refresh()
    return gateway


def searcher_over(gateway: Gateway, *, timeout_s: float = 60, named: Path | None = None) -> Searcher:
    return Searcher(gateway, Verifiers(NamedVerifiers(named)), most=MOST, timeout_s=timeout_s)


async def post(
    worker: Scripted, *, path: str = "chat/completions", key: str = "", app: dict[str, Any] | None = None, **fields: Any
) -> httpx.Response:
    gateway = await gateway_over(worker)
    options = {"searcher": searcher_over(gateway), **(app or {})}
    prompt = {"prompt": "hi"} if path == "completions" else {"messages": [{"role": "user", "content": "hi"}]}
    transport = httpx.ASGITransport(create_app(gateway, **options))
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers) as client:
        return await client.post(f"/v1/{path}", json={"model": MODEL, **prompt, **fields})


def search(**fields: Any) -> dict[str, Any]:
    return {"search": fields}


NUMBER = {"type": "number", "expected": "2"}


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
async def test_the_answer_that_the_verifier_likes_comes_first(path: str) -> None:
    worker = Scripted(says=lambda experts, number: f"it is {experts}")
    wanted = search(active_experts=[4, 3, 2], rounds=1, verifier=NUMBER)
    body = (await post(worker, path=path, n=3, premoe=wanted)).json()
    best = body["choices"][0]
    assert (best["message"]["content"] if "chat" in path else best["text"]) == "it is 2"
    assert best["index"] == 0
    found = body["premoe"]["search"]
    assert [answer["active_experts"] for answer in found["answers"]] == [4, 3, 2]
    assert {answer["index"] for answer in found["answers"]} == {0, 1, 2}
    winner = found["answers"][2]
    assert (winner["index"], winner["score"], winner["state"]) == (0, 1.0, "whole")
    assert winner["flops"] == 2 * (100 + 2 * 10) * (5 + 3)
    assert found["flops"] == sum(answer["flops"] for answer in found["answers"])
    assert (found["verified"], found["problem"], found["ended"], found["rounds"]) == (True, None, "score", 1)
    assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 9, "total_tokens": 14}
    assert found["completion_tokens"] == 9
    assert [ask.active_experts for ask in worker.asked] == [4, 3, 2]


async def test_without_a_list_it_goes_from_the_model_s_own_number_to_half_of_it() -> None:
    worker = Scripted()
    body = (await post(worker, n=6, seed=7, premoe=search())).json()
    assert {ask.active_experts for ask in worker.asked} == {4, 3, 2}
    assert len({ask.sampling.seed for ask in worker.asked}) == 6
    assert body["premoe"]["search"]["rounds"] == 2


async def test_without_a_verifier_the_answers_vote() -> None:
    worker = Scripted(says=lambda experts, number: "12" if number in (1, 2, 4) else f"{number} {number}")
    body = (await post(worker, n=6, premoe=search(vote="number"))).json()
    assert body["choices"][0]["message"]["content"] == "12"
    found = body["premoe"]["search"]
    assert found["verified"] is False
    assert {answer["votes"] for answer in found["answers"] if answer["index"] in (0, 1, 2)} == {0.5}
    assert found["ended"] == "answers"


async def test_later_rounds_give_more_answers_to_who_did_well() -> None:
    worker = Scripted(says=lambda experts, number: str(experts))
    wanted = search(active_experts=[4, 2], rounds=2, verifier={"type": "regex", "pattern": "^4$"}, enough=1)
    fields: dict[str, Any] = {"n": 12, "premoe": wanted}
    assert (await post(worker, **fields)).json()["premoe"]["search"]["ended"] == "score"
    never = {"type": "json_schema", "schema": {"maximum": 2}}
    worker = Scripted(says=lambda experts, number: str(experts))
    wanted = search(active_experts=[4, 2], rounds=2, verifier=never, enough=1)
    await post(worker, n=12, premoe=wanted)
    assert [ask.active_experts for ask in worker.asked[:6]].count(2) == 3


async def test_enough_ends_what_runs() -> None:
    worker = Scripted(says=lambda experts, number: str(experts), hangs=set())
    worker.hangs = {0}
    wanted = search(active_experts=[4, 2], rounds=1, verifier=NUMBER)
    body = (await post(worker, n=2, premoe=wanted)).json()
    assert [choice["message"]["content"] for choice in body["choices"]] == ["2"]
    found = body["premoe"]["search"]
    assert [answer["state"] for answer in found["answers"]] == ["cut", "whole"]
    assert found["answers"][0]["index"] is None
    assert body["usage"]["completion_tokens"] == 2
    assert worker.running == 0


async def test_a_budget_ends_what_runs_and_starts_nothing_more() -> None:
    worker = Scripted(says=lambda experts, number: "word " * 50)
    body = (await post(worker, n=8, premoe=search(rounds=4, budget=60))).json()
    found = body["premoe"]["search"]
    assert found["ended"] == "budget"
    # Two at a time: neither has made more than the budget when it is spent, and no third begins.
    assert 60 <= found["completion_tokens"] <= 62
    assert body["usage"]["completion_tokens"] == found["completion_tokens"]
    assert len(worker.asked) == 2
    (only, *_) = body["choices"]
    assert only["finish_reason"] == "length"
    assert only["message"]["content"].startswith("word")
    assert body["premoe"]["retained_mass"] is None
    assert worker.running == 0


async def test_an_answer_that_finds_no_room_costs_the_others_nothing() -> None:
    worker = Scripted(fails={0: Exhausted("full", reason="QUEUE_FULL")})
    body = (await post(worker, n=3, premoe=search(rounds=1))).json()
    assert len(body["choices"]) == 2
    failed = body["premoe"]["search"]["answers"][0]
    assert (failed["state"], failed["error"], failed["index"]) == ("failed", "queue_full", None)


async def test_where_all_fail_the_first_reason_is_told() -> None:
    worker = Scripted(fails={number: Exhausted(f"full {number}", reason="QUEUE_FULL") for number in range(9)})
    answer = await post(worker, n=3, premoe=search(rounds=1))
    assert answer.status_code == 429
    assert answer.json()["error"]["message"] == "full 0"


async def test_what_a_worker_refuses_is_refused() -> None:
    worker = Scripted(fails={1: InvalidInput("too many", reason="ACTIVE_EXPERTS_INVALID")}, hangs={0, 2})
    answer = await post(worker, n=3, premoe=search(rounds=1))
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "active_experts"
    assert worker.running == 0


async def test_a_stream_says_the_choices_when_they_are_decided() -> None:
    worker = Scripted(says=lambda experts, number: str(experts))
    wanted = search(active_experts=[4, 2], rounds=1, verifier=NUMBER, enough=1)
    answer = await post(worker, n=2, stream=True, stream_options={"include_usage": True}, premoe=wanted)
    *events, last = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert last == "[DONE]"
    chunks = [json.loads(event) for event in events]
    texts: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["delta"].get("content", "")
    assert texts == {0: "2", 1: "4"}
    assert chunks[-1]["usage"]["completion_tokens"] == 2
    assert chunks[-2]["premoe"]["search"]["answers"][1]["index"] == 0
    assert answer.headers["x-premoe-decision"] == "specialist"


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "one answer": ({"n": 1, "premoe": search()}, "n", "2 to 12"),
    "too many": ({"n": 13, "premoe": search()}, "n", "2 to 12"),
    "experts twice": ({"n": 2, "premoe": search(active_experts=[2, 2])}, "premoe.search.active_experts", "different"),
    "two lists": ({"n": 2, "active_experts": 2, "premoe": search()}, "active_experts", "premoe.search.active_experts"),
    "logprobs": ({"n": 2, "logprobs": True, "premoe": search()}, "logprobs", "premoe.search"),
    "tools": (
        {"n": 2, "tools": [{"type": "function", "function": {"name": "f"}}], "premoe": search()},
        "tools",
        "premoe.search",
    ),
    "an address": (
        {"n": 2, "premoe": search(verifier={"type": "model", "url": "http://10.0.0.1"})},
        "premoe.search.verifier.model.name",
        "must be given",
    ),
    "pattern": (
        {"n": 2, "premoe": search(verifier={"type": "regex", "pattern": "("})},
        "premoe.search.verifier",
        "is not a",
    ),
    "must be judged": ({"n": 2, "premoe": search(require_verified=True)}, "premoe.search.require_verified", "verifier"),
    "stop strings of steps": (
        {"n": 2, "stop": "x", "premoe": search(steps={"tokens": 16}, verifier={"type": "model", "name": "judge"})},
        "stop",
        "premoe.search.steps",
    ),
    "unknown field": ({"n": 2, "premoe": {"seach": {}}}, "premoe.seach", "not a parameter"),
    "no number": (
        {"n": 2, "premoe": search(verifier={"type": "number", "expected": "two"})},
        "premoe.search.verifier.number.expected",
        "",
    ),
}


@pytest.mark.parametrize("name", BAD)
async def test_what_a_search_cannot_be_asked_for(name: str) -> None:
    fields, param, words = BAD[name]
    worker = Scripted()
    answer = await post(worker, **fields)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param
    assert words in error["message"]
    assert not worker.asked


@pytest.mark.parametrize(
    ("premoe", "param"),
    [
        (5, "premoe"),
        ([], "premoe"),
        ({"search": "yes"}, "premoe.search"),
        (search(verifier=5), "premoe.search.verifier"),
        (search(verifier={}), "premoe.search.verifier.type"),
        (search(verifier={"type": "prm"}), "premoe.search.verifier.type"),
        (search(verifier={"type": "json_schema", "schema": []}), "premoe.search.verifier.json_schema.schema"),
        (search(verifier={"type": "exact", "expected": 4}), "premoe.search.verifier.exact.expected"),
        (search(active_experts=4), "premoe.search.active_experts"),
        (search(active_experts=[True]), "premoe.search.active_experts"),
        (search(rounds=1.5), "premoe.search.rounds"),
        (search(budget=0), "premoe.search.budget"),
        (search(enough=2, verifier=NUMBER), "premoe.search.enough"),
        (search(enough=1), "premoe.search.enough"),
        (search(vote="loudly"), "premoe.search.vote"),
        (search(steps={"tokens": 16}), "premoe.search.steps"),
        (search(steps={"tokens": 16}, verifier=NUMBER), "premoe.search.steps"),
        (search(steps={"tokens": 1}), "premoe.search.steps.tokens"),
    ],
)
async def test_nonsense_is_one_line_about_its_field(premoe: Any, param: str) -> None:
    answer = await post(Scripted(), n=2, premoe=premoe)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert error["message"].startswith(param)
    check(answer.status_code, {b"content-type": b"application/json"}, answer.content, "POST")


async def test_a_verifier_that_nobody_named_is_not_found() -> None:
    answer = await post(Scripted(), n=2, premoe=search(verifier={"type": "model", "name": "judge"}))
    assert answer.status_code == 404
    assert answer.json()["error"]["param"] == "premoe.search.verifier.name"


async def test_responses_and_gateways_that_run_none_refuse_it() -> None:
    fields: dict[str, Any] = {"input": "hi", "premoe": search()}
    assert (await post(Scripted(), path="responses", **fields)).status_code == 400
    answer = await post(Scripted(), app={"searcher": None}, n=2, premoe=search())
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "premoe.search"


async def test_nothing_is_searched_where_the_object_is_empty() -> None:
    worker = Scripted()
    body = (await post(worker, n=2, premoe={})).json()
    assert len(body["choices"]) == 2
    assert [ask.active_experts for ask in worker.asked] == [None, None]


class Mute:
    """A verifier that never answers."""

    timeout_s = 0.05

    def __init__(self) -> None:
        self.asked = 0

    async def score(self, answer: str) -> float:
        self.asked += 1
        await asyncio.Event().wait()
        return 1.0


class Muted(Verifiers):
    def __init__(self, verifier: Mute) -> None:
        super().__init__(NamedVerifiers())
        self._verifier = verifier

    async def of(self, wanted: object, question: str, *, unfinished: bool = False) -> Mute:
        return self._verifier


ASK = Ask(MODEL, "hi", Sampling())


async def test_a_verifier_that_never_answers_is_asked_in_one_round_and_the_answers_vote() -> None:
    worker, mute = Scripted(says=lambda experts, number: "odd" if number == 1 else "usual"), Mute()
    searcher = Searcher(await gateway_over(worker), Muted(mute), most=MOST, timeout_s=60)
    outcome = await searcher.run(lambda number: ASK, 6, PatternChoice("full"), SearchOrder(rounds=3), 6)
    assert outcome.shown[0].text == "usual"
    assert "did not answer within 0.05 s" in outcome.problem
    assert 1 <= mute.asked <= 2
    assert len(worker.asked) == 6


async def test_others_are_answered_while_a_verifier_is_silent() -> None:
    worker, mute = Scripted(), Mute()
    mute.timeout_s = 600
    gateway = await gateway_over(worker)
    app = create_app(gateway, searcher=Searcher(gateway, Muted(mute), most=MOST, timeout_s=600))
    body = {"model": MODEL, "prompt": "hi"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        silent = asyncio.create_task(client.post("/v1/completions", json={**body, "n": 2, "premoe": search(rounds=1)}))
        async with asyncio.timeout(60):
            while mute.asked < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert (await client.post("/v1/completions", json=body)).status_code == 200
        assert not silent.done()
        silent.cancel()
        await asyncio.gather(silent, return_exceptions=True)


async def test_who_must_have_a_judged_answer_gets_one_clear_error() -> None:
    searcher = Searcher(await gateway_over(Scripted()), Muted(Mute()), most=MOST, timeout_s=60)
    order = SearchOrder(require_verified=True)
    with pytest.raises(Unavailable, match="require_verified: the verifier did not answer") as caught:
        await searcher.run(lambda number: ASK, 2, PatternChoice("full"), order, 2)
    assert caught.value.reason == "VERIFIER_UNAVAILABLE"


async def test_a_search_ends_at_its_deadline_with_what_it_has() -> None:
    worker = Scripted(hangs={1})
    searcher = searcher_over(await gateway_over(worker), timeout_s=1.5)
    outcome = await searcher.run(lambda number: ASK, 2, PatternChoice("full"), SearchOrder(rounds=1), 2)
    assert outcome.ended == "deadline"
    assert [found.number for found in outcome.shown] == [0]
    assert worker.running == 0


async def test_cancelling_a_search_cancels_all_its_answers() -> None:
    worker = Scripted(hangs=set(range(4)))
    searcher = searcher_over(await gateway_over(worker))
    running = asyncio.create_task(searcher.run(lambda number: ASK, 4, PatternChoice("full"), SearchOrder(rounds=1), 4))
    async with asyncio.timeout(60):
        while worker.running < 4:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert worker.running == 0
    assert worker.cancelled == 4


async def test_a_search_counts_as_its_answers_and_runs_no_more_than_its_key_may(tmp_path: Path) -> None:
    limits = {"alice": {"requests_per_minute": 6, "concurrent": 2}}
    key = write_keys(tmp_path / "keys.json", limits)["alice"]
    worker = Scripted(says=lambda experts, number: "a b c")
    gateway = await gateway_over(worker)
    app = create_app(gateway, searcher=searcher_over(gateway), keyring=Keyring(tmp_path / "keys.json"))
    body = {"model": MODEL, "prompt": "hi", "n": 6, "premoe": search(rounds=1)}
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://g", headers=headers) as client:
        assert (await client.post("/v1/completions", json=body)).status_code == 200
        assert worker.most_running == 2
        refused = await client.post("/v1/completions", json={"model": MODEL, "prompt": "hi"})
    assert refused.status_code == 429
    assert "6 requests a minute" in refused.json()["error"]["message"]
