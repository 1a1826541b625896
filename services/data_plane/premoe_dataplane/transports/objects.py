"""Blobs straight out of object storage: neighbours joined into ranges of up to 8 MiB, a few at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

import numpy as np

from premoe_dataplane.plan import Scheme
from premoe_dataplane.sockets import TICK_S
from premoe_dataplane.stopped import Stopped
from premoe_dataplane.transports.base import Landed, Part
from premoe_runtime.formats.errors import CorruptData, NotFound, PremoeError, Unavailable
from premoe_runtime.formats.pieces import piece
from premoe_runtime.packs.ranges import Read, Run, coalesce
from premoe_runtime.storage import Store

IN_FLIGHT = 4
"""Ranges on their way, and so 32 MiB of memory beside the slots: a request cannot be taken back once it is made."""


class ObjectTransport:
    """Implements Transport for ``object``. A range that the store does not have has no piece that lands."""

    scheme: Scheme = "object"

    def __init__(self, store: Store, in_flight: int = IN_FLIGHT) -> None:
        self._store, self._in_flight = store, in_flight
        self._threads = ThreadPoolExecutor(in_flight, thread_name_prefix="premoe-objects")

    def read(self, parts: Sequence[Part], landed: Landed, stopped: Callable[[], bool]) -> None:
        runs, owners = _plan(parts)
        waiting = list(reversed(runs))
        under_way: dict[Future[bytes], Run] = {}
        try:
            while waiting or under_way:
                if stopped():
                    raise Stopped
                while waiting and len(under_way) < self._in_flight:
                    run = waiting.pop()
                    length = sum(view.nbytes for view in run.views)
                    under_way[self._submit(run.file, run.offset, length)] = run
                for future in wait(under_way, TICK_S, FIRST_COMPLETED).done:
                    _land(future, under_way.pop(future), owners, landed)
        finally:
            # What is under way goes on and is dropped: none of it writes into anybody's memory.
            for future in under_way:
                future.cancel()

    def _submit(self, path: str, offset: int, length: int) -> Future[bytes]:
        try:
            return self._threads.submit(self._store.get_range, path, offset, length)
        except RuntimeError:  # closed meanwhile
            raise Stopped from None

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


_Owners = dict[tuple[str, int], tuple[Part, int]]


def _plan(parts: Sequence[Part]) -> tuple[list[Run], _Owners]:
    """The requests, and whose piece begins where. A piece is shorter than a request, so none is cut."""
    reads: list[Read] = []
    owners: _Owners = {}
    for part in parts:
        for index in part.pieces:
            where = piece(index, part.blob.num_bytes)
            start = part.source.offset + where.offset
            reads.append(Read(part.source.url, start, part.into[where.offset : where.end]))
            owners[part.source.url, start] = part, index
    return coalesce(reads), owners


def _land(future: Future[bytes], run: Run, owners: _Owners, landed: Landed) -> None:
    try:
        data = np.frombuffer(future.result(), np.uint8)
    except (NotFound, CorruptData):
        return  # not there, or shorter than it should be
    except Unavailable:
        raise
    except PremoeError as error:
        raise Unavailable(f"object storage: {error}", reason=error.reason) from error
    at = 0
    for view in run.views:
        np.copyto(np.frombuffer(view, np.uint8), data[at : at + view.nbytes])
        landed(*owners[run.file, run.offset + at])
        at += view.nbytes
