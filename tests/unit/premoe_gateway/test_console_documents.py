"""The console over HTTP: its policy, and two documents that cost workers nothing however many pages are open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from premoe_gateway.access.keyring import Keyring
from premoe_gateway.console import masks
from premoe_gateway.console.held import Held
from premoe_gateway.console.patterns import MOST_PATTERNS, overlaps
from premoe_gateway.console.residency import MOST_WORKERS, residency
from premoe_gateway.console.routes import Console
from premoe_gateway.domain import Ask, PatternChoice, Sampling, WorkerState
from premoe_gateway.http.app import create_app
from premoe_gateway.ports import Retrieval
from premoe_gateway.service import Gateway
from support.console_doubles import Moving, Tasks, ranking
from support.keys import write_keys

from premoe_runtime.formats.allocation import kept, layer_counts
from premoe_runtime.formats.errors import Unavailable

LAYERS, EXPERTS = 4, 32
DATA = ("/premoe/v1/residency", "/premoe/v1/patterns?model=wide")


@asynccontextmanager
async def pages(
    gateway: Gateway, *, poll_s: float = 3600, console: bool = True, keyring: Keyring | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(gateway, console=Console(gateway, poll_s) if console else None, keyring=keyring)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        yield client


async def over(worker: Moving, retrieval: Retrieval | None = None) -> Gateway:
    gateway = Gateway([worker], retrieval or Tasks(layers=LAYERS, experts=EXPERTS), on_unknown=None, timeout_s=30)
    await gateway.refresh()
    return gateway


async def answer(gateway: Gateway, task: str) -> None:
    choice = PatternChoice("specialist", f"p-{task}", task)
    assert [event async for event in gateway.generate(Ask("wide", "hi", Sampling()), choice)]
    await gateway.refresh()


def experts(text: str) -> set[int]:
    """Those of one layer's mask."""
    return {expert for expert in range(EXPERTS) if int(text, 16) >> expert & 1}


@pytest.mark.parametrize("path", ["/", "/console/main.js", "/console/style.css", "/console/icon.svg"])
async def test_the_page_comes_under_a_strict_policy_and_is_sent_once(path: str) -> None:
    async with pages(await over(Moving())) as http:
        first = await http.get(path)
        again = await http.get(path, headers={"if-none-match": f'"other", {first.headers["etag"]}'})
        head = await http.head(path)
    assert (first.status_code, again.status_code, again.content, head.status_code) == (200, 304, b"", 200)
    policy = dict(part.strip().split(" ", 1) for part in first.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["img-src"] == "'self' data:"
    assert first.headers["x-content-type-options"] == "nosniff"
    assert first.headers["referrer-policy"] == "no-referrer"
    assert "no-cache" in first.headers["cache-control"]


async def test_the_page_names_no_outside_host_and_nothing_inline() -> None:
    async with pages(await over(Moving())) as http:
        page = (await http.get("/")).text
        scripts = (await http.get("/console/main.js")).text
    assert "://" not in page + scripts
    assert '<script type="module" src="console/main.js"></script>' in page
    assert page.count("<script") == 1
    assert "style=" not in page
    assert "onclick" not in page


@pytest.mark.parametrize("path", ["/", "/console/main.js", *DATA])
async def test_without_the_setting_there_is_no_page(path: str) -> None:
    async with pages(await over(Moving()), console=False) as http:
        refused = await http.get(path)
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "no_such_path")


@pytest.mark.parametrize("path", ["/console/other.js", "/console/..%2froutes.py", "/console/"])
async def test_no_other_file_is_served(path: str) -> None:
    async with pages(await over(Moving())) as http:
        refused = await http.get(path)
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "no_such_path")


async def test_with_api_keys_the_page_is_open_and_its_data_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = write_keys(tmp_path / "keys.json", {"alice": {}})["alice"]
    gateway = await over(Moving(layers=LAYERS, experts=EXPERTS))
    caplog.set_level("INFO", "premoe_gateway.http.calls")
    async with pages(gateway, keyring=Keyring(tmp_path / "keys.json")) as http:
        for path in ("/", "/console/main.js", "/console/style.css"):
            assert (await http.get(path)).status_code == 200
        for path in DATA:
            assert (await http.get(path, headers={"authorization": f"Bearer {key}"})).status_code == 200
        # What pages ask every second is not logged; who tries keys is.
        assert caplog.messages == []
        refused = (*DATA, "/console", "/premoe/v1/other")
        for path in refused:
            assert (await http.get(path)).status_code == 401
        assert caplog.messages == ["request"] * len(refused)


async def test_residency_is_what_the_worker_says_and_what_its_last_swap_moved() -> None:
    worker = Moving(layers=LAYERS, experts=EXPERTS)
    gateway = await over(worker)
    async with pages(gateway, poll_s=0) as http:

        async def shown() -> dict[str, Any]:
            document = (await http.get(DATA[0])).json()
            assert (document["left_out"], len(document["workers"])) == (0, 1)
            found: dict[str, Any] = document["workers"][0]
            return found

        assert (await shown())["moved"] is None
        await answer(gateway, "sql")
        first = worker.residents
        said = await shown()
        assert [experts(layer) for layer in said["resident"]] == [set(layer) for layer in first]
        assert (said["generation"], said["moved"]) == (1, None)
        await answer(gateway, "mail")
        said = await shown()
        assert (said["address"], said["serving"], said["model"]) == (worker.address, True, "wide")
        for number, (now, before) in enumerate(zip(worker.residents, first, strict=True)):
            assert experts(said["resident"][number]) == now
            assert experts(said["moved"]["in"][number]) == now - before
            assert experts(said["moved"]["out"][number]) == before - now
        # What did not move anything leaves the picture of what did.
        await answer(gateway, "mail")
        assert (await shown())["moved"] == said["moved"]
        assert worker.residents != first


async def test_a_look_in_the_middle_of_a_swap_hides_nothing_of_what_it_moved() -> None:
    """A swap takes its victims out first, and enters what came, under a new generation, in the end."""
    worker = Moving(layers=2, experts=EXPERTS, residents=(frozenset({0, 1}), frozenset({2, 3})))
    gateway = await over(worker)
    for generation, residents in (
        (0, (frozenset({0}), frozenset({2, 3}))),
        (0, (frozenset({0}), frozenset({2}))),
        (1, (frozenset({0, 5}), frozenset({2, 6}))),
        (1, (frozenset({0, 5}), frozenset({2, 6}))),
    ):
        worker.generation, worker.residents = generation, residents
        await gateway.refresh()
    async with pages(gateway) as http:
        moved = (await http.get(DATA[0])).json()["workers"][0]["moved"]
    assert [experts(layer) for layer in moved["in"]] == [{5}, {6}]
    assert [experts(layer) for layer in moved["out"]] == [{1}, {3}]


async def test_fifty_open_pages_cost_workers_and_retrieval_nothing() -> None:
    worker = Moving(layers=LAYERS, experts=EXPERTS)
    retrieval = Tasks(layers=LAYERS, experts=EXPERTS)
    gateway = await over(worker, retrieval)
    async with pages(gateway) as http:
        answers = await asyncio.gather(*(http.get(path) for path in DATA for _ in range(50)))
        assert {each.status_code for each in answers} == {200}
        assert len({each.content for each in answers}) == len(DATA)
        assert worker.states == 1
        # The list once, and each of the five patterns once.
        assert retrieval.reads == 6
        refused = await http.get("/premoe/v1/patterns?model=other")
        assert (refused.status_code, refused.json()["error"]["code"], worker.states) == (404, "model_not_found", 1)


async def test_patterns_keep_what_the_worker_keeps_for_them() -> None:
    async with pages(await over(Moving(layers=LAYERS, experts=EXPERTS))) as http:
        said = (await http.get(DATA[1])).json()
    assert [each["task"] for each in said["patterns"]] == ["generalist", "mail", "poems", "sql", "sums"]
    assert (said["budget"], said["layers"], said["experts"], said["left_out"]) == ("4/6", LAYERS, EXPERTS, 0)
    for each in said["patterns"]:
        whole = ranking(each["id"], LAYERS, EXPERTS)
        counts = layer_counts(whole.scores, 6, 4, "shared", [8] * LAYERS)
        assert each["kept"] == masks.rows(kept(whole.experts, counts))
        assert sum(int(layer, 16).bit_count() for layer in each["kept"]) == 6 * LAYERS
    assert [row[index] for index, row in enumerate(said["overlaps"])] == [1.0] * 5


async def test_patterns_are_worked_out_once_until_the_set_changes() -> None:
    retrieval = Tasks(layers=LAYERS, experts=EXPERTS)
    async with pages(await over(Moving(layers=LAYERS, experts=EXPERTS), retrieval), poll_s=0) as http:
        first = (await http.get(DATA[1])).json()
        assert (await http.get(DATA[1])).json() == first
        # Two looks at the list, and each of the five patterns once.
        assert retrieval.reads == 7
        retrieval.tasks = ("sql",)
        changed = (await http.get(DATA[1])).json()
    assert [each["task"] for each in changed["patterns"]] == ["generalist", "sql"]


async def test_a_long_set_is_shown_in_part() -> None:
    retrieval = Tasks(tasks=[f"task-{number:03}" for number in range(100)], layers=4, experts=32)
    async with pages(await over(Moving(layers=4, experts=32), retrieval)) as http:
        said = (await http.get(DATA[1])).json()
    assert (len(said["patterns"]), said["left_out"]) == (MOST_PATTERNS, 101 - MOST_PATTERNS)
    assert said["patterns"][0]["kind"] == "generalist"


async def test_what_is_missing_is_one_line() -> None:
    async with pages(await over(Moving())) as http:
        unnamed = (await http.get("/premoe/v1/patterns")).json()["error"]
    assert (unnamed["param"], unnamed["message"]) == ("model", "say which model's: ?model=NAME")
    alone = Gateway([Moving()], None, on_unknown=None, timeout_s=30)
    await alone.refresh()
    async with pages(alone) as http:
        refused = await http.get(DATA[1])
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "no_retrieval")


def test_many_workers_are_counted_and_the_silent_are_named() -> None:
    known: list[tuple[str, WorkerState | None]] = [(f"w{number:03}", None) for number in range(100)]
    document = residency(known, 1.0)
    assert document["left_out"] == 100 - MOST_WORKERS
    assert isinstance(document["workers"], list)
    assert document["workers"][0] == {"address": "w000", "serving": False}


def test_masks_and_overlaps() -> None:
    assert masks.hexadecimal(frozenset()) == "0"
    assert masks.hexadecimal({0, 4, 255}) == f"{1 | 1 << 4 | 1 << 255:x}"
    two = [np.array([[True, True], [False, False]]), np.array([[True, False], [True, True]])]
    assert masks.rows(two[1]) == ["1", "3"]
    assert overlaps(two) == [[1.0, 0.5], [0.3333, 1.0]]
    assert overlaps([]) == []


async def test_a_document_is_made_once_an_interval_and_so_is_its_failure() -> None:
    made, now, broken, go_on = 0, 0.0, True, asyncio.Event()

    async def make() -> Mapping[str, object]:
        nonlocal made
        made += 1
        await go_on.wait()
        if broken:
            raise Unavailable("retrieval does not answer")
        return {"made": made}

    held = Held(make, 1.0, lambda: now)
    waiting = [asyncio.ensure_future(held.get()) for _ in range(50)]
    await asyncio.sleep(0)
    # Whoever leaves takes it from nobody.
    waiting[0].cancel()
    go_on.set()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(each) for each in outcomes[1:]} == {Unavailable}
    with pytest.raises(Unavailable):
        await held.get()
    assert made == 1
    broken, now = False, 1.0
    assert (await held.get()).content == (await held.get()).content == b'{"made":2}'
    now = 2.0
    assert (await held.get()).content == b'{"made":3}'
