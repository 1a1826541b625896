"""Metrics of a running mesh: what the page says, what requests do to them, and a worker that dies under a scrape."""

from __future__ import annotations

import threading

import httpx
import metrics_page
import pytest
from premoe_local.mesh import Mesh
from support.mesh import ALPHABETS, UNKNOWN, mesh_over, prompts
from support.metrics import Scrape, scrape

pytestmark = pytest.mark.timeout(300)  # every mesh is four processes, and a worker imports torch

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SAMPLED = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
SECTIONS = {"worker": "Worker", "gateway": "Gateway", "retrieval": "Retrieval", "store": "Expert store"}


def ask(mesh: Mesh, prompt: str, **fields: object) -> httpx.Response:
    body = {"model": mesh.model_name, "messages": [{"role": "user", "content": prompt}], "max_tokens": 4, **fields}
    return httpx.post(f"{mesh.url}/v1/chat/completions", json=body, headers=SAMPLED, timeout=60)


def scraped(mesh: Mesh) -> dict[str, Scrape]:
    return {name: scrape(address) for name, address in mesh.metrics.items()}


@pytest.mark.parametrize("name", SECTIONS)
def test_the_page_lists_what_is_exported_and_nothing_else(mesh: Mesh, name: str) -> None:
    ask(mesh, prompts("digits", 1)[0]).raise_for_status()
    page = {**metrics_page.listed("Every process but the operator"), **metrics_page.listed(SECTIONS[name])}
    found = scrape(mesh.metrics[name]).families
    assert found.keys() == page.keys()
    for exported, metric in page.items():
        family = found[exported]
        assert family.type == metric.kind, exported
        if exported.startswith("premoe:"):
            assert family.documentation == metric.help
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(metric.labels), exported


def test_a_request_shows_in_every_process_it_went_through(mesh: Mesh) -> None:
    before = scraped(mesh)
    answers = [ask(mesh, prompt) for task in ALPHABETS for prompt in prompts(task, 2, seed=9)]
    answers.append(ask(mesh, UNKNOWN))
    after = scraped(mesh)
    assert {answer.status_code for answer in answers} == {200}
    records = [answer.json() for answer in answers]

    def grown(process: str, sample: str, **labels: str) -> float:
        return after[process].value(f"premoe:{sample}", **labels) - before[process].value(f"premoe:{sample}", **labels)

    tokens = sum(record["usage"]["completion_tokens"] for record in records)
    assert grown("gateway", "gateway_requests_total", path="/v1/chat/completions", code="200") == len(answers)
    assert grown("retrieval", "retrieval_seconds_count") == len(answers)
    kinds = [record["premoe"]["decision"] for record in records]
    for kind in set(kinds):
        assert grown("retrieval", "decisions_total", decision=kind) == kinds.count(kind)
    assert after["retrieval"].labels("premoe:decisions_total", "task") <= set(ALPHABETS)
    assert after["retrieval"].value("premoe:retrieval_exemplars") > 0
    assert grown("worker", "generation_tokens_total") == tokens
    assert grown("worker", "prompt_tokens_total") == sum(record["usage"]["prompt_tokens"] for record in records)
    assert grown("worker", "inter_token_latency_seconds_count") <= tokens - len(answers)
    for name in ("time_to_first_token_seconds_count", "e2e_request_latency_seconds_count", "request_success_total"):
        assert grown("worker", name) == len(answers)
    assert grown("worker", "pattern_queries_total") == len(answers)
    tasks = {record["premoe"]["task"] for record in records if record["premoe"]["decision"] == "specialist"}
    assert after["worker"].labels("premoe:pattern_queries_total", "task") <= {*ALPHABETS, "generalist"}
    for task in tasks:
        ran = [
            record
            for record in records
            if (record["premoe"]["decision"], record["premoe"]["task"]) == ("specialist", task)
        ]
        assert grown("worker", "pattern_queries_total", task=task) == len(ran)
        mass = sum(record["premoe"]["retained_mass"] for record in ran)
        assert grown("worker", "retained_routing_mass_sum", task=task) == pytest.approx(mass)
    moved = sum(record["premoe"]["swap"]["bytes_loaded"] for record in records)
    assert grown("worker", "expert_bytes_total") == moved
    assert after["worker"].value("premoe:expert_slots", layer="0") == 6
    assert (
        after["worker"].value("premoe:num_requests_running")
        == after["worker"].value("premoe:num_requests_waiting")
        == 0
    )
    assert after["store"].value("premoe:store_read_bytes_total", source="object") > 0
    assert after["gateway"].value("premoe:gateway_worker_up") == 1


def test_exemplars_lead_to_the_trace_of_a_request(mesh: Mesh) -> None:
    ask(mesh, prompts("vowels", 1, seed=4)[0], stream=True)
    found = scraped(mesh)
    for process, name in (
        ("worker", "time_to_first_token_seconds"),
        ("worker", "e2e_request_latency_seconds"),
        ("retrieval", "retrieval_seconds"),
        ("gateway", "gateway_request_seconds"),
    ):
        traces = {exemplar.labels["trace_id"] for exemplar in found[process].exemplars(f"premoe:{name}_bucket")}
        assert traces == {TRACE}, name


def test_refusals_are_counted_by_their_reason(mesh: Mesh) -> None:
    before = scraped(mesh)
    assert ask(mesh, "x" * 300).status_code == 400
    after = scraped(mesh)
    assert after["gateway"].value("premoe:gateway_requests_total", code="400") > before["gateway"].value(
        "premoe:gateway_requests_total", code="400"
    )


def test_a_scrape_while_a_worker_dies_tells_what_is_known(store_url: str) -> None:
    lines: list[str] = []
    with mesh_over(store_url, log=lambda name, line: lines.append(line)) as mesh:
        ask(mesh, prompts("digits", 1)[0]).raise_for_status()
        worker, gateway = mesh.metrics["worker"], mesh.metrics["gateway"]
        gone = threading.Event()

        def scrape_until_it_is_gone() -> None:
            while True:
                try:
                    assert scrape(worker).families
                except httpx.ConnectError:
                    gone.set()
                    return
                except httpx.HTTPError:
                    continue  # it died in mid-answer

        scrapers = [threading.Thread(target=scrape_until_it_is_gone) for _ in range(3)]
        for each in scrapers:
            each.start()
        mesh.workers[0].kill()
        for each in scrapers:
            each.join()
        assert gone.is_set()
        assert ask(mesh, "0123456789").status_code == 503
        found = scrape(gateway)
        assert found.value("premoe:gateway_worker_up") == 0
        assert found.value("premoe:gateway_requests_total", code="503") == 1
        assert scrape(mesh.metrics["store"]).value("premoe:store_sent_bytes_total") > 0
    assert not [line for line in lines if "Traceback" in line]
