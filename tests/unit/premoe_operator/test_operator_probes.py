"""The probe server and the metrics behind it."""

from __future__ import annotations

import asyncio

import httpx
from premoe_operator.kube.client import migrated_fields
from premoe_operator.run.metrics import Metrics
from premoe_operator.run.probes import Answer, ProbeServer, verdict


async def test_answers_by_path() -> None:
    async def bad() -> Answer:
        return verdict("a watch is stale")

    async def good() -> Answer:
        return verdict(None)

    async with ProbeServer("127.0.0.1", 0, {"/livez": bad, "/readyz": good}) as server, httpx.AsyncClient() as client:
        answers = [await client.get(server.url + path) for path in ("/livez", "/readyz?verbose=1", "/other")]
        posted = await client.post(server.url + "/readyz")
    assert [(answer.status_code, answer.text) for answer in answers] == [
        (503, "a watch is stale\n"),
        (200, "ok\n"),
        (404, "not found\n"),
    ]
    assert posted.status_code == 404


async def test_rubbish_on_the_port_does_no_harm() -> None:
    async def good() -> Answer:
        return verdict(None)

    async with ProbeServer("127.0.0.1", 0, {"/livez": good}) as server, httpx.AsyncClient() as client:
        host, port = server.url.removeprefix("http://").split(":")
        for rubbish in (b"\x16\x03\x01", b"x" * 20_000 + b"\r\n\r\n"):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(rubbish)
            writer.close()
        assert (await client.get(f"{server.url}/livez")).status_code == 200


def test_metrics_say_what_is_there() -> None:
    metrics = Metrics()
    metrics.show(lambda: {"AllReady": 2}, lambda: {"/apis/x": 1.5}, lambda: 3)
    metrics.on_call("create", "services", 201)
    text = metrics.text().decode()
    assert 'premoe_operator_models{reason="AllReady"} 2.0' in text
    assert 'premoe_operator_watch_age_seconds{watch="/apis/x"} 1.5' in text
    assert "premoe_operator_queue_length 3.0" in text
    assert 'premoe_operator_api_requests_total{code="201",resource="services",verb="create"} 1.0' in text


def test_fields_owned_by_the_create_become_owned_by_apply() -> None:
    ours = {"manager": "premoe-operator", "operation": "Update", "fieldsV1": {}}
    others = [
        {"manager": "kubectl", "operation": "Update"},
        {"manager": "premoe-operator", "operation": "Update", "subresource": "status"},
    ]
    assert migrated_fields([ours, *others]) == [{**ours, "operation": "Apply"}, *others]
    assert migrated_fields(others) == others
    applied = {**ours, "operation": "Apply"}
    assert migrated_fields([applied, ours]) == [applied]
