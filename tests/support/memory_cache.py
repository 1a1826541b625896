"""A blob cache in this process: the port's reference, and what tests use for a Redis."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

from premoe_dataplane.blob_cache import Wanted

from premoe_runtime.formats.pieces import Hole, pieces, touched


class MemoryCache:
    """Implements BlobCache: pieces by (digest, index), least recently used ones dropped beyond ``limit_bytes``."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._num_bytes = 0
        self._pieces: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, wanted: Sequence[Wanted]) -> list[tuple[Hole, ...]]:
        return [tuple(self._read(one)) for one in wanted]

    def write(self, digest: str, blob: memoryview, holes: Sequence[Hole]) -> None:
        for index, piece in touched(len(blob), holes):
            self._put((digest, index), bytes(blob[piece.offset : piece.offset + piece.length]))

    def holds(self, digests: Sequence[str], num_bytes: int) -> list[bool]:
        count = len(pieces(num_bytes))
        with self._lock:
            return [all((digest, index) in self._pieces for index in range(count)) for digest in digests]

    def forget(self, digest: str, num_bytes: int) -> None:
        with self._lock:
            for index in range(len(pieces(num_bytes))):
                self._num_bytes -= len(self._pieces.pop((digest, index), b""))

    def close(self) -> None:
        with self._lock:
            self._pieces.clear()
            self._num_bytes = 0

    def _read(self, wanted: Wanted) -> list[Hole]:
        holes = []
        for index, piece in enumerate(pieces(len(wanted.into))):
            with self._lock:
                data = self._pieces.get((wanted.digest, index))
                if data is not None:
                    self._pieces.move_to_end((wanted.digest, index))
            if data is None or len(data) != piece.length:
                holes.append(piece)
            else:
                wanted.into[piece.offset : piece.offset + piece.length] = data
        return holes

    def _put(self, key: tuple[str, int], data: bytes) -> None:
        with self._lock:
            self._num_bytes += len(data) - len(self._pieces.pop(key, b""))
            self._pieces[key] = data
            while self._num_bytes > self._limit_bytes:
                _, dropped = self._pieces.popitem(last=False)
                self._num_bytes -= len(dropped)
