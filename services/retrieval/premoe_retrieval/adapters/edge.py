"""Qdrant's engine in this process: one shard per length of a signature, one point per exemplar.

Every pattern of every set has a name of its own among the points (``member``), so that one indexed condition finds its
exemplars; ``set_id`` counts and deletes. Exact search only: the indexed conditions leave few points to compare.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TypeVar

import qdrant_edge as edge
from premoe_servicekit.deadlines import carried

from premoe_retrieval.adapters.folder import IndexFolder
from premoe_retrieval.adapters.points import PREFIX, collection_of, exemplars, index_span
from premoe_runtime.formats.arrays import F32
from premoe_runtime.formats.errors import CorruptData, PremoeError, Unavailable
from premoe_runtime.formats.pattern_set import PatternSet
from premoe_runtime.formats.recognition import Neighbour

T = TypeVar("T")

UPSERT_POINTS = 128
_EXACT = edge.SearchParams(exact=True)


class EdgeIndex:
    """Implements PatternIndex. ``folder`` keeps the points; without one they go with the process.

    Raises InvalidInput when another process holds the folder, CorruptData when it cannot be read, and Unavailable when
    there is no room.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = IndexFolder(folder)
        self._shards: dict[int, edge.EdgeShard] = {}
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="index")
        try:
            self._folder.check_room()
            self._open()
        except PremoeError:
            self._close()
            raise

    async def publish(self, set_id: str, pattern_set: PatternSet) -> None:
        def publish() -> None:
            shard = self._shard(pattern_set.dimension)
            points = _points(set_id, pattern_set)
            while batch := list(islice(points, UPSERT_POINTS)):
                self._folder.check_room()
                shard.update(edge.UpdateOperation.upsert_points(batch))
            shard.flush()

        await self._write("upsert", collection_of(pattern_set.dimension), publish)

    async def count(self, set_id: str, dimension: int) -> int:
        shard = self._shards.get(dimension)
        return 0 if shard is None else _count(shard, set_id)

    async def query(self, set_id: str, vector: F32, wanted: Mapping[str, int]) -> Sequence[Neighbour]:
        """Runs on the event loop: the engine keeps the interpreter's lock, so that a thread would free nobody."""
        shard = self._shards.get(len(vector))
        if shard is None or not wanted:
            return []
        nearest = edge.Query.Nearest(vector.tolist())
        requests = [
            edge.QueryRequest(
                limit=count, query=nearest, filter=_equals("member", _member(set_id, pattern_id)), params=_EXACT
            )
            for pattern_id, count in wanted.items()
        ]
        with index_span("query", collection_of(len(vector))), self._faults():
            answers = shard.query_batch(edge.QueryBatchRequest(requests))
        return [
            Neighbour(pattern_id, hit.score) for pattern_id, hits in zip(wanted, answers, strict=True) for hit in hits
        ]

    async def delete(self, set_id: str) -> bool:
        def delete() -> bool:
            holding = [shard for shard in self._shards.values() if _count(shard, set_id)]
            for shard in holding:
                self._folder.check_room()
                shard.update(edge.UpdateOperation.delete_points_by_filter(_equals("set_id", set_id)))
            return bool(holding)

        return await self._write("delete", f"{PREFIX}*", delete)

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._writer, self._close)
        self._writer.shutdown()

    async def _write(self, operation: str, collection: str, work: Callable[[], T]) -> T:
        """Run ``work`` on the one thread that writes."""

        def traced() -> T:
            with index_span(operation, collection), self._faults():
                return work()

        return await asyncio.get_running_loop().run_in_executor(self._writer, carried(traced))

    def _open(self) -> None:
        """Load every shard that the folder holds."""
        for path in self._folder.path.glob(f"{PREFIX}*"):
            dimension = path.name.removeprefix(PREFIX)
            if not dimension.isdecimal():
                continue
            try:
                self._shards[int(dimension)] = edge.EdgeShard.load(str(path))
            except Exception as error:  # the engine has no class of its own
                raise CorruptData(
                    f"index {path} cannot be read: {_first_line(error)}; if it is damaged, delete it, and it is made "
                    "again from object storage",
                    reason="INDEX_DAMAGED",
                ) from error

    def _shard(self, dimension: int) -> edge.EdgeShard:
        """The shard of a dimension; a new one appears whole, with its payload indexes, or not at all."""
        if dimension not in self._shards:
            path = self._folder.path / collection_of(dimension)
            partial = path.with_name(f"{path.name}.new")
            shutil.rmtree(partial, ignore_errors=True)
            vectors = edge.EdgeVectorParams(size=dimension, distance=edge.Distance.Cosine)
            self._folder.check_room()
            shard = edge.EdgeShard.create(str(partial), edge.EdgeConfig(vectors=vectors, max_search_threads=1))
            for field in ("set_id", "member"):
                shard.update(edge.UpdateOperation.create_field_index(field, edge.KeywordIndexParams()))
            shard.close()
            partial.rename(path)
            self._shards[dimension] = edge.EdgeShard.load(str(path))
        return self._shards[dimension]

    def _close(self) -> None:
        for shard in self._shards.values():
            shard.close()
        self._shards.clear()
        self._folder.close()

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except PremoeError:
            raise
        except Exception as error:  # the engine has no class of its own
            raise Unavailable(
                f"index in {self._folder.path} failed: {_first_line(error)}", reason="INDEX_UNAVAILABLE"
            ) from error


def _points(set_id: str, pattern_set: PatternSet) -> Iterator[edge.Point]:
    for point_id, member, vector in exemplars(set_id, pattern_set):
        payload = {"set_id": set_id, "member": _member(set_id, member.pattern_id)}
        yield edge.Point(point_id, vector.tolist(), payload)


def _member(set_id: str, pattern_id: str) -> str:
    return f"{set_id}/{pattern_id}"


def _count(shard: edge.EdgeShard, set_id: str) -> int:
    return int(shard.count(edge.CountRequest(filter=_equals("set_id", set_id), exact=True)))


def _equals(field: str, value: str) -> edge.Filter:
    return edge.Filter(must=[edge.FieldCondition(key=field, match=edge.MatchValue(value=value))])


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
