"""Redis as a blob cache: one key a piece, a small window of requests on the wire instead of MGET.

MGET would pile the whole answer up in the server's output buffer, and single requests wait for the network each time
(data-plane.md section 3). A value evicted or cut short is a hole; whoever reads checks the digest of the whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, cast
from urllib.parse import urlsplit

import redis
from redis.exceptions import OutOfMemoryError, RedisError

from premoe_dataplane.blob_cache import Wanted
from premoe_runtime.formats.errors import Exhausted, InvalidInput, Unavailable
from premoe_runtime.formats.pieces import Hole, pieces, touched

WINDOW = 4
CONNECT_TIMEOUT_S = 0.5
EXISTS_WINDOW = 512

Command = tuple[str | bytes | memoryview, ...]


class _Connection(Protocol):
    """What we use of redis-py's connection, which it leaves untyped."""

    def send_command(self, *command: str | bytes | memoryview) -> None: ...
    def read_response(self) -> object: ...
    def disconnect(self) -> None: ...


class _Pool(Protocol):
    def get_connection(self) -> _Connection: ...
    def release(self, connection: _Connection) -> None: ...
    def disconnect(self) -> None: ...


class RedisCache:
    """Implements BlobCache. Nothing is contacted before the first call. Raises InvalidInput on a bad URL."""

    def __init__(self, url: str, *, timeout_s: float = 1.0, connections: int = 16) -> None:
        try:
            pool = redis.BlockingConnectionPool.from_url(
                url,
                socket_timeout=timeout_s,
                socket_connect_timeout=min(timeout_s, CONNECT_TIMEOUT_S),
                max_connections=connections,
                timeout=timeout_s,
            )
        except ValueError as error:
            raise InvalidInput(f"Redis URL {url!r}: {error}", reason="REDIS_URL") from error
        self._pool = cast("_Pool", pool)
        self._where = urlsplit(url).hostname or url

    def read(self, wanted: Sequence[Wanted]) -> list[tuple[Hole, ...]]:
        holes: list[list[Hole]] = [[] for _ in wanted]
        places = [
            (number, index, piece)
            for number, one in enumerate(wanted)
            for index, piece in enumerate(pieces(len(one.into)))
        ]
        with self._connection() as connection:
            commands = (("GET", _key(wanted[number].digest, index)) for number, index, _ in places)
            for (number, _, piece), data in zip(places, _windowed(connection, commands), strict=True):
                if isinstance(data, bytes) and len(data) == piece.length:
                    wanted[number].into[piece.offset : piece.offset + piece.length] = data
                else:
                    holes[number].append(piece)
        return [tuple(found) for found in holes]

    def write(self, digest: str, blob: memoryview, holes: Sequence[Hole]) -> None:
        commands = (
            ("SET", _key(digest, index), blob[piece.offset : piece.offset + piece.length])
            for index, piece in touched(len(blob), holes)
        )
        with self._connection() as connection:
            for _ in _windowed(connection, commands):
                pass

    def holds(self, digests: Sequence[str], num_bytes: int) -> list[bool]:
        count = len(pieces(num_bytes))
        with self._connection() as connection:
            commands = (("EXISTS", *(_key(digest, index) for index in range(count))) for digest in digests)
            return [answer == count for answer in _windowed(connection, commands, EXISTS_WINDOW)]

    def forget(self, digest: str, num_bytes: int) -> None:
        keys = [_key(digest, index) for index in range(len(pieces(num_bytes)))]
        with self._connection() as connection:
            list(_windowed(connection, [("UNLINK", *keys)]))

    def close(self) -> None:
        self._pool.disconnect()

    @contextmanager
    def _connection(self) -> Iterator[_Connection]:
        """A connection of the pool; closed instead of given back when answers may still be under way on it."""
        connection: _Connection | None = None
        try:
            connection = self._pool.get_connection()
            yield connection
        except BaseException as error:
            if connection is not None:
                connection.disconnect()
            if isinstance(error, OutOfMemoryError):
                raise Exhausted(f"Redis at {self._where} is full: {error}", reason="CACHE_FULL") from error
            if isinstance(error, RedisError | OSError):
                raise Unavailable(f"Redis at {self._where} failed: {error}", reason="CACHE_UNAVAILABLE") from error
            raise
        finally:
            if connection is not None:
                self._pool.release(connection)


def _windowed(connection: _Connection, commands: Iterable[Command], window: int = WINDOW) -> Iterator[object]:
    """Answers in order, with at most ``window`` commands on the wire. Raises what the server answers as an error."""
    waiting: deque[None] = deque()
    for command in commands:
        if len(waiting) == window:
            waiting.popleft()
            yield connection.read_response()
        connection.send_command(*command)
        waiting.append(None)
    for _ in range(len(waiting)):
        yield connection.read_response()


def _key(digest: str, index: int) -> str:
    return f"premoe:blob:{digest}:{index}"
