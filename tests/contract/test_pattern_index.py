"""One suite for every vector index: the matrix, Qdrant's engine in process, and a Qdrant server.

Without a server (PREMOE_TEST_QDRANT_URL), the client's own in-process Qdrant answers the calls of that adapter.
"""

from __future__ import annotations

import os
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from premoe_retrieval.adapters import qdrant as server_adapter
from premoe_retrieval.adapters.edge import EdgeIndex
from premoe_retrieval.adapters.memory import MemoryIndex
from premoe_retrieval.adapters.qdrant import QdrantIndex
from premoe_retrieval.ports import PatternIndex
from qdrant_client import QdrantClient
from support.profiles import profile
from support.stored_patterns import DIMENSION, FAR, TASKS, StoredSet, store_set

from premoe_runtime.formats.errors import Unavailable
from premoe_runtime.formats.pattern_set import PatternSet
from premoe_runtime.formats.recognition import decide, recognise
from premoe_runtime.formats.signature import unit
from premoe_runtime.formats.space import Space
from premoe_runtime.offline.patterns.build import build_set
from premoe_runtime.storage import open_store

SERVER = os.environ.get("PREMOE_TEST_QDRANT_URL", "")
KINDS = ("memory", "edge-temporary", "edge-folder", "server")
pytestmark = [  # what the client's own Qdrant does without
    pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning"),
    pytest.mark.filterwarnings("ignore:Local mode performs exact:UserWarning"),
]


@pytest.fixture(params=KINDS)
async def index(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[PatternIndex]:
    made: PatternIndex
    match request.param:
        case "memory":
            made = MemoryIndex()
        case "edge-temporary":
            made = EdgeIndex()
        case "edge-folder":
            made = EdgeIndex(tmp_path / "index")
        case _:
            if not SERVER:
                monkeypatch.setattr(server_adapter, "QdrantClient", lambda **_: QdrantClient(location=":memory:"))
            made = QdrantIndex(SERVER or "http://in-process")
    yield made
    await made.close()


@pytest.fixture
def stored() -> StoredSet:
    return store_set(open_store(f"memory://{uuid.uuid4()}"), seed=uuid.uuid4().int % 2**32)


def wanted_of(stored: StoredSet, count: int = 5) -> dict[str, int]:
    return {member.pattern_id: count for member in stored.pattern_set.specialists}


async def test_an_unknown_set_is_empty(index: PatternIndex) -> None:
    name = uuid.uuid4().hex
    assert await index.count(name, DIMENSION) == 0
    assert list(await index.query(name, FAR, {"p": 5})) == []
    assert await index.delete(name) is False


async def test_a_published_set_is_counted_and_deleted(index: PatternIndex, stored: StoredSet) -> None:
    await index.publish(stored.set_id, stored.pattern_set)
    assert await index.count(stored.set_id, DIMENSION) == 21
    assert await index.count(stored.set_id, DIMENSION + 1) == 0
    assert await index.delete(stored.set_id) is True
    assert await index.count(stored.set_id, DIMENSION) == 0
    assert list(await index.query(stored.set_id, FAR, wanted_of(stored))) == []
    assert await index.delete(stored.set_id) is False


async def test_a_set_of_centres_is_decided_alike(index: PatternIndex) -> None:
    profiles = [profile(task, prompts=60) for task in ("add", "json", "rev")]
    found = build_set(profiles).pattern_set
    assert {member.exemplars for member in found.specialists} == {1}
    await index.publish(found.set_id, found)
    wanted = {member.pattern_id: 1 for member in found.specialists}
    asked = np.concatenate([np.concatenate([one.signatures[:5] for one in profiles]), -profiles[0].signatures[:2]])
    decided = [decide(await index.query(found.set_id, found.embed(row), wanted), found) for row in asked]
    exact = [recognise(found, row) for row in asked]
    assert [(one.kind, one.task) for one in decided] == [(one.kind, one.task) for one in exact]
    assert [one.score for one in decided] == pytest.approx([one.score for one in exact], abs=1e-3)
    assert {one.kind for one in exact} == {"specialist", "generalist"}
    await index.delete(found.set_id)


async def test_publishing_again_changes_nothing(index: PatternIndex, stored: StoredSet) -> None:
    await index.publish(stored.set_id, stored.pattern_set)
    await index.publish(stored.set_id, stored.pattern_set)
    assert await index.count(stored.set_id, DIMENSION) == 21


async def test_each_pattern_gives_its_own_nearest_exemplars(index: PatternIndex, stored: StoredSet) -> None:
    await index.publish(stored.set_id, stored.pattern_set)
    vector = unit(np.random.default_rng(1).normal(size=DIMENSION).astype(np.float32))
    wanted = dict(zip(wanted_of(stored), (1, 5, 7), strict=True))
    found = await index.query(stored.set_id, vector, wanted)
    for pattern_id, count in wanted.items():
        rows = stored.pattern_set.exemplars_of(stored.pattern_set.member(pattern_id))
        best = sorted((one.similarity for one in found if one.pattern_id == pattern_id), reverse=True)
        assert len(best) >= count
        np.testing.assert_allclose(best[:count], np.sort(rows @ vector)[::-1][:count], atol=1e-5)


async def test_sets_do_not_see_each_other(index: PatternIndex, stored: StoredSet) -> None:
    other = store_set(open_store(f"memory://{uuid.uuid4()}"), seed=5, exemplars=3)
    await index.publish(stored.set_id, stored.pattern_set)
    await index.publish(other.set_id, other.pattern_set)
    found = await index.query(stored.set_id, FAR, wanted_of(stored))
    assert Counter(one.pattern_id for one in found).keys() == wanted_of(stored).keys()
    await index.delete(other.set_id)
    assert len(await index.query(stored.set_id, FAR, wanted_of(stored))) == len(found)


async def test_more_than_there_is_gives_what_there_is(index: PatternIndex, stored: StoredSet) -> None:
    await index.publish(stored.set_id, stored.pattern_set)
    found = await index.query(stored.set_id, FAR, wanted_of(stored, 50))
    assert Counter(one.pattern_id for one in found) == dict.fromkeys(wanted_of(stored), 7)


async def test_a_zero_vector_is_near_nothing(index: PatternIndex, stored: StoredSet) -> None:
    await index.publish(stored.set_id, stored.pattern_set)
    found = await index.query(stored.set_id, np.zeros(DIMENSION, np.float32), wanted_of(stored))
    assert all(one.similarity == pytest.approx(0) for one in found)


@pytest.mark.parametrize("task", [*TASKS, None])
async def test_decisions_agree_with_brute_force(index: PatternIndex, stored: StoredSet, task: str | None) -> None:
    await index.publish(stored.set_id, stored.pattern_set)
    signature = FAR if task is None else stored.near(task)
    found = await index.query(stored.set_id, stored.pattern_set.embed(signature), wanted_of(stored))
    ours, exact = decide(found, stored.pattern_set), recognise(stored.pattern_set, signature)
    assert (ours.kind, ours.pattern_id) == (exact.kind, exact.pattern_id)
    assert ours.score == pytest.approx(exact.score, abs=1e-5)
    assert [match.task for match in ours.matches] == [match.task for match in exact.matches]


@pytest.mark.parametrize("task", [*TASKS, None])
async def test_decisions_in_a_space_agree_too(index: PatternIndex, stored: StoredSet, task: str | None) -> None:
    axes = np.random.default_rng(3).normal(size=(DIMENSION, DIMENSION)).astype(np.float32)
    space = Space(np.full(DIMENSION, 0.1, np.float32), axes)
    plain = stored.pattern_set
    moved = PatternSet.make(plain.document, space.of(plain.exemplars), plain.splits, space)
    await index.publish(moved.set_id, moved)
    signature = FAR if task is None else stored.near(task)
    found = await index.query(moved.set_id, moved.embed(signature), wanted_of(stored))
    ours, exact = decide(found, moved), recognise(moved, signature)
    assert (ours.kind, ours.pattern_id) == (exact.kind, exact.pattern_id)
    assert ours.recognised == (task is not None)
    assert ours.score == pytest.approx(exact.score, abs=1e-5)


async def test_a_server_that_is_not_there_is_unavailable(unused_tcp_port: int) -> None:
    index = QdrantIndex(f"http://127.0.0.1:{unused_tcp_port}", timeout_s=5)
    with pytest.raises(Unavailable, match=r"Qdrant at http://127\.0\.0\.1") as caught:
        await index.query("set", FAR, {"p": 5})
    assert caught.value.reason == "INDEX_UNAVAILABLE"
    await index.close()
