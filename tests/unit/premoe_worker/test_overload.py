"""A worker with too much to do: it says so before it does anything, and operations go on."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from premoe_worker.domain import Ask
from premoe_worker.limits import Limits
from premoe_worker.model import Encoded, ServedModel
from premoe_worker.service import Worker
from premoe_worker.tools.formats import ToolUse

from premoe_runtime.engines.base import RequestLimits
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.errors import Exhausted, Unavailable
from premoe_runtime.formats.signature import Signatures
from premoe_runtime.offline.prompts import Span
from premoe_runtime.serving.admission import Admission


class Model:
    """Encodes and probes only while ``encoding`` and ``probing`` are set."""

    def __init__(self, queue_limit: int) -> None:
        self.queue_limit = queue_limit
        self.encoding, self.probing = threading.Event(), threading.Event()
        self.encoded = 0
        self.tool_use = ToolUse()
        self.manifest = SimpleNamespace(model_id="m", weights_id="w")
        self.engine = SimpleNamespace(limits=RequestLimits(context=64, vocabulary=8, top_k=2))
        self.front = SimpleNamespace(drain=lambda timeout_s: 0, admission=Admission(queue_limit))

    def encode(self, ask: Ask) -> Encoded:
        self.encoded += 1
        self.encoding.wait()
        return Encoded((1, 2), Span(0, 2))

    def signatures(self, encoded: Encoded) -> Signatures:
        self.probing.wait()
        return Signatures(np.ones(1, np.float32))


def worker_over(model: Model) -> Worker:
    limits = cast(Limits, SimpleNamespace(budget=Budget(2, 4), generalist_budget=Budget(2, 4), on_unknown="generalist"))
    return Worker(cast(ServedModel, model), None, limits, name="m", queue_limit=model.queue_limit)


async def until(true: Any) -> None:
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_full_queue_is_told_before_anything_is_encoded_or_probed() -> None:
    model = Model(queue_limit=1)
    worker = worker_over(model)
    answer = worker.generate(Ask("hello"))
    first = asyncio.ensure_future(anext(answer))
    await until(lambda: model.encoded)
    with pytest.raises(Exhausted) as caught:
        await anext(worker.generate(Ask("hello")))
    assert caught.value.reason == "QUEUE_FULL"
    with pytest.raises(Exhausted):
        await worker.probe(Ask("hello"))
    assert model.encoded == 1
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    model.encoding.set()
    model.probing.set()
    await worker.probe(Ask("hello"))  # the request that left has left the queue too
    worker.close()


async def test_a_worker_that_drains_says_so_before_it_encodes() -> None:
    model = Model(queue_limit=9)
    model.front.admission.draining = True
    worker = worker_over(model)
    for asked in (anext(worker.generate(Ask("hello"))), worker.probe(Ask("hello"))):
        with pytest.raises(Unavailable):
            await asked
    assert model.encoded == 0
    worker.close()


async def test_operations_do_not_wait_behind_probes() -> None:
    model = Model(queue_limit=200)
    model.encoding.set()
    worker = worker_over(model)
    probes = [asyncio.ensure_future(worker.probe(Ask("hello"))) for _ in range(100)]
    await until(lambda: model.encoded == len(probes))
    assert await asyncio.wait_for(worker.drain(1.0), 20) == 0
    assert not any(probe.done() for probe in probes)
    model.probing.set()
    await asyncio.gather(*probes)
    worker.close()


async def test_probes_beyond_the_bound_are_refused() -> None:
    model = Model(queue_limit=3)
    model.encoding.set()
    worker = worker_over(model)
    probes = []
    for number in range(1, 11):
        probes.append(asyncio.ensure_future(worker.probe(Ask("hello"))))
        await until(lambda number=number: model.encoded == number)
    await until(lambda: sum(probe.done() for probe in probes) == 6)  # one runs and three wait
    model.probing.set()
    results = await asyncio.gather(*probes, return_exceptions=True)
    refused = [result for result in results if isinstance(result, Exhausted)]
    assert len(refused) == 6
    assert "waiting to be probed" in str(refused[0])
    worker.close()
