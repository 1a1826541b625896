"""Pieces of blobs out of Redis, read by whoever wants them without a store in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from premoe_dataplane.blob_cache import piece_key
from premoe_dataplane.plan import Scheme
from premoe_dataplane.redis_pieces import RedisPieces, WantedPiece
from premoe_dataplane.transports.base import Landed, Part
from premoe_runtime.formats.pieces import piece

IDLE_S = 2.0
CONNECTIONS = 16


class RedisTransport:
    """Implements Transport for ``redis``. ``url`` as ``redis_nodes`` says. Raises InvalidInput on a bad one."""

    scheme: Scheme = "redis"

    def __init__(self, url: str, *, idle_s: float = IDLE_S) -> None:
        self._pieces = RedisPieces(url, timeout_s=idle_s, connections=CONNECTIONS)

    def read(self, parts: Sequence[Part], landed: Landed, stopped: Callable[[], bool]) -> None:
        places = [(part, index) for part in parts for index in part.pieces]
        wanted = [
            WantedPiece(part.blob.digest, piece_key(part.source.url, index), part.into[where.offset : where.end])
            for part, index in places
            for where in (piece(index, part.blob.num_bytes),)
        ]
        self._pieces.read(wanted, lambda number: landed(*places[number]), stopped)

    def close(self) -> None:
        self._pieces.close()
