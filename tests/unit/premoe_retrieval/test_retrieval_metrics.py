"""What the retrieval service counts of the queries that come over the wire."""

from __future__ import annotations

import uuid
from typing import Any, cast

import pytest
from premoe.patterns.v1 import patterns_pb2 as pb
from premoe_retrieval.adapters.memory import MemoryIndex
from premoe_retrieval.metrics import RetrievalMetrics
from premoe_retrieval.repository import PatternRepository
from premoe_retrieval.service import PatternService
from premoe_retrieval.servicer import PatternServicer
from premoe_servicekit.metrics import Metrics
from support.metrics import read
from support.stored_patterns import FAR, TASKS, WEIGHTS, store_set

from premoe_runtime.formats.errors import NotFound
from premoe_runtime.storage import open_store


async def test_decisions_are_counted_by_kind_and_nearest_task() -> None:
    store = open_store(f"memory://{uuid.uuid4()}")
    stored = store_set(store)
    service = PatternService(PatternRepository(store, live_refresh_s=60), MemoryIndex())
    await service.publish_set(stored.set_id)
    await service.set_live(WEIGHTS, stored.set_id)
    metrics = Metrics()
    servicer = PatternServicer(service, RetrievalMetrics(metrics))

    async def ask(signature: Any, weights_id: str = WEIGHTS) -> None:
        request = pb.RetrieveRequest(weights_id=weights_id, signature=signature.tolist())
        await servicer.Retrieve(request, cast(Any, None))

    await ask(stored.near(TASKS[0]))
    await ask(stored.near(TASKS[0]))
    await ask(FAR)
    with pytest.raises(NotFound):
        await ask(FAR, weights_id="f" * 64)
    found = read(metrics)
    assert found.value("premoe:decisions_total", decision="specialist", task=TASKS[0]) == 2
    assert found.value("premoe:decisions_total") == 3
    assert found.labels("premoe:decisions_total", "task") <= set(TASKS)
    assert found.value("premoe:retrieval_seconds_count") == 4
    assert found.value("premoe:retrieval_failures_total") == 1
    assert found.value("premoe:retrieval_exemplars") == sum(
        member.exemplars for member in stored.pattern_set.specialists
    )
