"""Qdrant as the vector index: embedded (in memory or in a folder) or a server.

One collection per signature shape, one point per exemplar, payload ``set_id``, ``pattern_id``, ``task``, ``kind``;
every query is filtered by set, so a set becomes searchable or vanishes without touching the others.
"""

from __future__ import annotations

import asyncio
import math
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

from opentelemetry.trace import SpanKind
from premoe_servicekit.deadlines import bounded, carried
from premoe_servicekit.telemetry import tracer
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import ApiException

from premoe_runtime.formats.arrays import F32
from premoe_runtime.formats.errors import InvalidInput, Unavailable
from premoe_runtime.formats.pattern_set import PatternSet
from premoe_runtime.formats.recognition import Neighbour

T = TypeVar("T")

IN_MEMORY = ":memory:"
PREFIX = "premoe-signatures-"
UPSERT_POINTS = 256
TIMEOUT_S = 10.0
_POINTS = uuid.UUID("7a2f3f4e-0f7e-5b0e-9f52-5b7f2c3a9d10")


class QdrantIndex:
    """Implements PatternIndex. ``location`` is ":memory:", a folder, or the http(s) URL of a server.

    Raises Unavailable when a server does not answer, InvalidInput when another process holds the folder.
    """

    def __init__(self, location: str = IN_MEMORY, *, timeout_s: float = TIMEOUT_S, api_key: str | None = None) -> None:
        self._location = location
        self._api_key = api_key
        self._timeout_s = timeout_s
        self._remote = location.startswith(("http://", "https://"))
        # The embedded client keeps its state in plain Python and sqlite: one thread owns it.
        self._threads = ThreadPoolExecutor(8 if self._remote else 1, thread_name_prefix="qdrant")
        self._client = self._threads.submit(self._connect).result()

    async def publish(self, set_id: str, pattern_set: PatternSet) -> None:
        collection = _collection(pattern_set.dimension)
        await self._run("upsert", collection, lambda client: self._publish(client, collection, set_id, pattern_set))

    async def count(self, set_id: str, dimension: int) -> int:
        collection = _collection(dimension)

        def count(client: QdrantClient) -> int:
            if not client.collection_exists(collection):
                return 0
            return int(client.count(collection, count_filter=_of(set_id), exact=True).count)

        return await self._run("count", collection, count)

    async def query(self, set_id: str, vector: F32, wanted: Mapping[str, int]) -> Sequence[Neighbour]:
        collection = _collection(len(vector))
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
            if self._remote:  # the embedded client warns that it has no payload indexes
                for field in ("set_id", "pattern_id"):
                    client.create_payload_index(collection, field, models.PayloadSchemaType.KEYWORD, wait=True)
        points = _points(set_id, pattern_set)
        while batch := list(islice(points, UPSERT_POINTS)):
            client.upsert(collection, points=batch, wait=True)

    def _query(
        self, client: QdrantClient, collection: str, set_id: str, vector: list[float], wanted: Mapping[str, int]
    ) -> list[Neighbour]:
        """One grouped query; what a server's grouping left out (it stops after a few rounds) is asked by pattern."""
        if not wanted or not client.collection_exists(collection):
            return []
        timeout = max(1, math.ceil(bounded(self._timeout_s)))
        exact = models.SearchParams(exact=True) if self._remote else None  # the embedded client always is
        groups = client.query_points_groups(
            collection,
            group_by="pattern_id",
            query=vector,
            query_filter=_of(set_id),
            search_params=exact,
            limit=len(wanted),
            group_size=max(wanted.values()),
            with_payload=False,
            timeout=timeout,
        ).groups
        found = [Neighbour(str(group.id), hit.score) for group in groups for hit in group.hits]
        counts = Counter(neighbour.pattern_id for neighbour in found)
        short = [pattern_id for pattern_id, count in wanted.items() if counts[pattern_id] < count]
        if not short:
            return found
        requests = [
            models.QueryRequest(query=vector, filter=_of(set_id, pattern_id), limit=wanted[pattern_id], params=exact)
            for pattern_id in short
        ]
        answers = client.query_batch_points(collection, requests=requests, timeout=timeout)
        kept = [neighbour for neighbour in found if neighbour.pattern_id not in short]
        return kept + [
            Neighbour(pattern_id, hit.score)
            for pattern_id, answer in zip(short, answers, strict=True)
            for hit in answer.points
        ]

    async def _run(self, operation: str, collection: str, work: Callable[[QdrantClient], T]) -> T:
        """Run ``work`` on a client thread, inside a span, with Qdrant's errors turned into ours."""

        def traced() -> T:
            with (
                self._errors(),
                tracer().start_as_current_span(
                    f"qdrant {operation}",
                    kind=SpanKind.CLIENT,
                    attributes={
                        "db.system.name": "qdrant",
                        "db.collection.name": collection,
                        "db.operation.name": operation,
                    },
                ),
            ):
                return work(self._client)

        return await asyncio.get_running_loop().run_in_executor(self._threads, carried(traced))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (ApiException, QdrantException, OSError) as error:
            text = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise Unavailable(f"Qdrant at {self._location} failed: {text}", reason="INDEX_UNAVAILABLE") from error

    def _connect(self) -> QdrantClient:
        if self._remote:
            timeout_s = math.ceil(self._timeout_s)
            return QdrantClient(url=self._location, timeout=timeout_s, api_key=self._api_key, check_compatibility=False)
        if self._location == IN_MEMORY:
            return QdrantClient(location=IN_MEMORY)
        try:
            return QdrantClient(path=self._location)
        except RuntimeError as error:
            raise InvalidInput(
                f"Qdrant folder {self._location} is held by another process; "
                "give every process a folder of its own, or use a server",
                reason="INDEX_LOCKED",
            ) from error


def _points(set_id: str, pattern_set: PatternSet) -> Iterator[models.PointStruct]:
    """A point per exemplar; ids are functions of set and row, so that publishing again overwrites."""
    for member in pattern_set.specialists:
        payload = {"set_id": set_id, "pattern_id": member.pattern_id, "task": member.task, "kind": member.kind}
        for row, vector in enumerate(pattern_set.exemplars_of(member), start=member.first_exemplar):
            point_id = str(uuid.uuid5(_POINTS, f"{set_id}/{row}"))
            yield models.PointStruct(id=point_id, vector=vector.tolist(), payload=payload)


def _collection(dimension: int) -> str:
    return f"{PREFIX}{dimension}"


def _of(set_id: str, pattern_id: str | None = None) -> models.Filter:
    conditions: list[models.Condition] = [_equals("set_id", set_id)]
    if pattern_id is not None:
        conditions.append(_equals("pattern_id", pattern_id))
    return models.Filter(must=conditions)


def _equals(field: str, value: str) -> models.FieldCondition:
    return models.FieldCondition(key=field, match=models.MatchValue(value=value))
