"""A Qdrant server as the vector index, for several replicas and for more exemplars than one process should hold.

One collection per signature shape, one point per exemplar, payload ``set_id``, ``pattern_id``, ``task``, ``kind``;
every query is filtered by set, so a set becomes searchable or vanishes without touching the others.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

from premoe_servicekit.deadlines import bounded, carried
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import ApiException

from premoe_retrieval.adapters.points import PREFIX, collection_of, exemplars, index_span
from premoe_runtime.formats.arrays import F32
from premoe_runtime.formats.errors import Unavailable
from premoe_runtime.formats.pattern_set import PatternSet
from premoe_runtime.formats.recognition import Neighbour

T = TypeVar("T")

UPSERT_POINTS = 256
TIMEOUT_S = 10.0
_EXACT = models.SearchParams(exact=True)


class QdrantIndex:
    """Implements PatternIndex; ``url`` is http(s)."""

    def __init__(self, url: str, *, timeout_s: float = TIMEOUT_S, api_key: str | None = None) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="qdrant")
        self._client = QdrantClient(url=url, timeout=math.ceil(timeout_s), api_key=api_key, check_compatibility=False)

    async def publish(self, set_id: str, pattern_set: PatternSet) -> None:
        collection = collection_of(pattern_set.dimension)
        await self._run("upsert", collection, lambda client: self._publish(client, collection, set_id, pattern_set))

    async def count(self, set_id: str, dimension: int) -> int:
        collection = collection_of(dimension)

        def count(client: QdrantClient) -> int:
            if not client.collection_exists(collection):
                return 0
            return int(client.count(collection, count_filter=_of(set_id), exact=True).count)

        return await self._run("count", collection, count)

    async def query(self, set_id: str, vector: F32, wanted: Mapping[str, int]) -> Sequence[Neighbour]:
        collection = collection_of(len(vector))
        return await self._run(
            "query", collection, lambda client: self._query(client, collection, set_id, vector.tolist(), wanted)
        )

    async def delete(self, set_id: str) -> bool:
        def delete(client: QdrantClient) -> bool:
            existed = False
            for found in client.get_collections().collections:
                if found.name.startswith(PREFIX):
                    existed |= client.count(found.name, count_filter=_of(set_id), exact=True).count > 0
                    client.delete(found.name, points_selector=models.FilterSelector(filter=_of(set_id)), wait=True)
            return existed

        return await self._run("delete", PREFIX + "*", delete)

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._threads, self._client.close)
        self._threads.shutdown()

    def _publish(self, client: QdrantClient, collection: str, set_id: str, pattern_set: PatternSet) -> None:
        if not client.collection_exists(collection):
            vectors = models.VectorParams(size=pattern_set.dimension, distance=models.Distance.COSINE)
            client.create_collection(collection, vectors_config=vectors)
            for field in ("set_id", "pattern_id"):
                client.create_payload_index(collection, field, models.PayloadSchemaType.KEYWORD, wait=True)
        points = _points(set_id, pattern_set)
        while batch := list(islice(points, UPSERT_POINTS)):
            client.upsert(collection, points=batch, wait=True)

    def _query(
        self, client: QdrantClient, collection: str, set_id: str, vector: list[float], wanted: Mapping[str, int]
    ) -> list[Neighbour]:
        """The nearest of each pattern, all patterns in one round trip."""
        if not wanted or not client.collection_exists(collection):
            return []
        requests = [
            models.QueryRequest(query=vector, filter=_of(set_id, pattern_id), limit=count, params=_EXACT)
            for pattern_id, count in wanted.items()
        ]
        timeout = max(1, math.ceil(bounded(self._timeout_s)))
        answers = client.query_batch_points(collection, requests=requests, timeout=timeout)
        return [
            Neighbour(pattern_id, hit.score)
            for pattern_id, answer in zip(wanted, answers, strict=True)
            for hit in answer.points
        ]

    async def _run(self, operation: str, collection: str, work: Callable[[QdrantClient], T]) -> T:
        """Run ``work`` on a client thread, inside a span, with Qdrant's errors turned into ours."""

        def traced() -> T:
            with self._errors(), index_span(operation, collection):
                return work(self._client)

        return await asyncio.get_running_loop().run_in_executor(self._threads, carried(traced))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (ApiException, QdrantException, OSError) as error:
            text = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise Unavailable(f"Qdrant at {self._url} failed: {text}", reason="INDEX_UNAVAILABLE") from error


def _points(set_id: str, pattern_set: PatternSet) -> Iterator[models.PointStruct]:
    for point_id, member, vector in exemplars(set_id, pattern_set):
        payload = {"set_id": set_id, "pattern_id": member.pattern_id, "task": member.task, "kind": member.kind}
        yield models.PointStruct(id=str(point_id), vector=vector.tolist(), payload=payload)


def _of(set_id: str, pattern_id: str | None = None) -> models.Filter:
    conditions: list[models.Condition] = [_equals("set_id", set_id)]
    if pattern_id is not None:
        conditions.append(_equals("pattern_id", pattern_id))
    return models.Filter(must=conditions)


def _equals(field: str, value: str) -> models.FieldCondition:
    return models.FieldCondition(key=field, match=models.MatchValue(value=value))
