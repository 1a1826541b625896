"""Which signatures are kept, and how they are paged through."""

from __future__ import annotations

import uuid

import numpy as np
import pytest
from premoe.patterns.v1 import patterns_pb2 as pb
from premoe_retrieval import recorder as module
from premoe_retrieval.adapters.memory import MemoryIndex
from premoe_retrieval.recorder import Recorder
from premoe_retrieval.repository import PatternRepository
from premoe_retrieval.service import PatternService
from premoe_retrieval.servicer import PatternServicer
from premoe_servicekit.signatures import read_signatures
from support.stored_patterns import FAR, WEIGHTS, StoredSet, direction, store_set

from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.recognition import recognise
from premoe_runtime.formats.signature import Signatures
from premoe_runtime.storage import open_store


async def live_service(recorder: Recorder | None) -> tuple[PatternService, StoredSet]:
    store = open_store(f"memory://{uuid.uuid4()}")
    service = PatternService(PatternRepository(store, live_refresh_s=1.0), MemoryIndex(), recorder=recorder)
    stored = store_set(store)
    await service.publish_set(stored.set_id)
    await service.set_live(WEIGHTS, stored.set_id)
    return service, stored


async def test_nothing_is_kept_unless_asked() -> None:
    service, _ = await live_service(None)
    await service.retrieve(WEIGHTS, Signatures(FAR))
    assert (service.recorder.page(WEIGHTS, 0), service.recorder.capacity) == ([], 0)


async def test_the_last_decisions_of_the_live_set_are_kept_and_listed() -> None:
    service, stored = await live_service(Recorder(3, clock=lambda: 12.5))
    for signature in (FAR, FAR, stored.near("sorting"), stored.near("counting")):
        await service.retrieve(WEIGHTS, Signatures(signature))
    # A set that is tried by name decides nothing.
    await service.retrieve(WEIGHTS, Signatures(FAR), set_id=stored.set_id)
    servicer = PatternServicer(service)
    answer = await servicer.ListSignatures(pb.ListSignaturesRequest(weights_id=WEIGHTS), None)  # type: ignore[arg-type]
    assert answer.capacity == 3
    assert [(each.number, each.decision, each.task) for each in answer.signatures][1:] == [
        (3, pb.DECISION_SPECIALIST, "sorting"),
        (4, pb.DECISION_SPECIALIST, "counting"),
    ]
    first = answer.signatures[0]
    assert (first.number, first.decision, first.unix_ms) == (2, pb.DECISION_GENERALIST, 12_500)
    assert (first.set_id, list(first.signature)) == (stored.set_id, FAR.tolist())
    talk = Signatures(FAR, stored.near("sorting"), (FAR, stored.near("counting")))
    await service.retrieve(WEIGHTS, talk)
    answer = await servicer.ListSignatures(pb.ListSignaturesRequest(weights_id=WEIGHTS, after=4), None)  # type: ignore[arg-type]
    (last,) = answer.signatures
    assert (last.number, last.task) == (5, "sorting")
    for found, sent in zip(read_signatures(last).all, talk.all, strict=True):
        np.testing.assert_array_equal(found, sent)
    with pytest.raises(InvalidInput, match="weights_id is empty"):
        await servicer.ListSignatures(pb.ListSignaturesRequest(), None)  # type: ignore[arg-type]


def test_pages_are_bounded_by_bytes_and_by_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = store_set(open_store(f"memory://{uuid.uuid4()}"))
    recorder = Recorder(100)
    for number in range(10):
        signature = direction(number)
        recorder.note(
            WEIGHTS if number % 2 else "cd" * 32, "s", Signatures(signature), recognise(stored.pattern_set, signature)
        )
    monkeypatch.setattr(module, "PAGE_BYTES", 2 * direction(0).nbytes)
    seen: list[int] = []
    while page := recorder.page(WEIGHTS, seen[-1] if seen else 0):
        assert len(page) <= 2
        seen += [each.number for each in page]
        assert all(np.array_equal(each.signatures.whole, direction(each.number - 1)) for each in page)
    assert seen == [2, 4, 6, 8, 10]
