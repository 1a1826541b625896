"""The registry of a process and its port."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from opentelemetry import trace
from premoe_servicekit.metrics import COUNTER, GAUGE, OTHER, Few, Metric, Metrics, MetricsServer, Sample, exemplar
from premoe_servicekit.settings import ServerSettings
from support.metrics import read, scrape

from premoe_runtime.formats.errors import InvalidInput, Unavailable

SPAN = trace.SpanContext(0xABC, 0xDEF, is_remote=True, trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED))


@asynccontextmanager
async def serving(metrics: Metrics, host: str = "127.0.0.1") -> AsyncIterator[str]:
    server = MetricsServer(metrics, ServerSettings(host=host, metrics_port=0))
    address = await server.start()
    try:
        yield address
    finally:
        await server.stop()


async def get(address: str, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient() as client:
        return await client.get(f"http://{address}/metrics", headers=headers)


async def test_the_text_comes_in_the_format_that_the_reader_asks_for() -> None:
    metrics = Metrics()
    metrics.counter("cakes", "Cakes.", ("kind",)).labels("apple").inc(3)
    async with serving(metrics) as address:
        plain = await get(address)
        assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert 'premoe:cakes_total{kind="apple"} 3.0' in plain.text
        found = await asyncio.to_thread(scrape, address)
        assert found.value("premoe:cakes_total", kind="apple") == 3
        for accept in ("nonsense", "text/plain;version=;q=", "application/openmetrics-text; version=x", "*/*;;;,,"):
            assert (await get(address, accept=accept)).status_code == 200, accept


async def test_an_exemplar_leads_to_the_trace_of_the_current_span() -> None:
    metrics = Metrics()
    seconds = metrics.histogram("baking_seconds", "Time in the oven.")
    assert exemplar() is None
    with trace.use_span(trace.NonRecordingSpan(SPAN)):
        seconds.observe(0.2, exemplar())
    seconds.observe(0.2, exemplar())
    (found,) = read(metrics).exemplars("premoe:baking_seconds_bucket")
    assert found.labels == {"trace_id": f"{0xABC:032x}", "span_id": f"{0xDEF:016x}"}
    unsampled = trace.SpanContext(1, 2, is_remote=True)
    with trace.use_span(trace.NonRecordingSpan(unsampled)):
        assert exemplar() is None


async def test_a_reading_that_fails_costs_its_own_values_only_and_one_line_an_outage(
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics = Metrics()
    metrics.gauge("ovens", "Ovens.").set(2)
    broken = True

    def look() -> list[Sample]:
        if broken:
            raise Unavailable("nobody\nhere")
        return [("trays", ("1",), 5.0), ("turns", (), 7.0)]

    metrics.on_demand((Metric("trays", GAUGE, "Trays.", ("oven",)), Metric("turns", COUNTER, "Turns.")), look)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert read(metrics).value("premoe:ovens") == 2
    assert [record.getMessage() for record in caplog.records] == [
        "no values for now of the metrics trays, turns: nobody here"
    ]
    assert read(metrics).families.keys() == {"premoe:ovens", "premoe:trays", "premoe:turns"}
    broken = False
    found = read(metrics)
    assert (found.value("premoe:trays", oven="1"), found.value("premoe:turns_total")) == (5, 7)


async def test_a_slow_reading_holds_up_neither_the_event_loop_nor_another_scrape() -> None:
    metrics = Metrics()
    entered, release, calls = threading.Event(), threading.Event(), iter(range(9))

    def look() -> list[Sample]:
        if next(calls) == 0:
            entered.set()
            release.wait()
        return [("trays", (), 1.0)]

    metrics.on_demand((Metric("trays", GAUGE, "Trays."),), look)
    async with serving(metrics) as address:
        slow = asyncio.create_task(get(address))
        await asyncio.to_thread(entered.wait)
        assert "premoe:trays 1.0" in (await get(address)).text
        assert not slow.done()
        release.set()
        assert "premoe:trays 1.0" in (await slow).text


async def test_readers_that_leave_or_say_nonsense_leave_no_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    metrics = Metrics()
    metrics.gauge("ovens", "Ovens.").set(1)
    async with serving(metrics) as address:
        host, _, port = address.rpartition(":")
        for said in (b"", b"\x16\x03\x01\x00", b"GET /metrics HTTP/1.1\r\n", b"GET " + b"x" * 100_000, b"\r\n" * 50):
            with socket.create_connection((host, int(port))) as reader:
                reader.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
                reader.sendall(said)
        async with httpx.AsyncClient() as client:
            assert (await client.post(f"http://{address}/metrics")).status_code == 405
        assert "premoe:ovens 1.0" in (await get(address)).text
    assert capfd.readouterr().err == ""


async def test_it_listens_on_an_ipv6_address() -> None:
    metrics = Metrics()
    metrics.gauge("ovens", "Ovens.").set(1)
    async with serving(metrics, "::1") as address:
        assert address.startswith("[::1]:")
        assert "premoe:ovens 1.0" in (await get(address)).text


async def test_a_port_in_use_and_an_address_that_is_not_ours_are_one_line() -> None:
    async with serving(Metrics()) as address:
        port = int(address.rpartition(":")[2])
        with pytest.raises(Unavailable, match=f"port {port} on 127.0.0.1 is in use") as taken:
            await MetricsServer(Metrics(), ServerSettings(metrics_port=port)).start()
        assert taken.value.reason == "PORT_IN_USE"
    for host in ("203.0.113.1", "no-such-host.invalid"):
        with pytest.raises(InvalidInput) as wrong:
            await MetricsServer(Metrics(), ServerSettings(metrics_host=host, metrics_port=0)).start()
        assert "\n" not in str(wrong.value)


async def test_a_server_that_never_started_stops() -> None:
    server = MetricsServer(Metrics(), ServerSettings(metrics_port=0))
    await server.stop()


def test_every_process_tells_its_version_and_what_it_takes() -> None:
    metrics = Metrics()
    metrics.add_process()
    found = read(metrics)
    assert found.value("premoe:build_info") == 1
    assert found.value("process_resident_memory_bytes") > 1e6


def test_values_of_a_label_are_few() -> None:
    few = Few(2)
    assert [few(word) for word in ("a", "b", "c", "a", "d")] == ["a", "b", OTHER, "a", OTHER]


def test_two_processes_in_one_interpreter_do_not_meet() -> None:
    one, two = Metrics(), Metrics()
    for each in (one, two):
        each.counter("cakes", "Cakes.").inc()
    assert read(one).value("premoe:cakes_total") == read(two).value("premoe:cakes_total") == 1
    assert one.listed == two.listed == [Metric("cakes", COUNTER, "Cakes.")]
