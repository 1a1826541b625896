"""Pieces out of Redis, each straight into its place: a few requests on the wire, answers read by us.

The connections are redis-py's (users, TLS, reconnecting), only the reading is not: its replies are made of copies, the
largest of them in fresh memory each time (data-plane.md section 3).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from redis.exceptions import OutOfMemoryError, RedisError

from premoe_dataplane.redis_nodes import Connection, Node, Nodes, open_nodes
from premoe_dataplane.sockets import Incoming, Malformed
from premoe_dataplane.stopped import Stopped
from premoe_runtime.formats.errors import Exhausted, Unavailable

WINDOW = 4
"""Requests on the wire. MGET instead would pile the whole answer up in the server's output buffer."""
COOL_DOWN_S = 5.0
"""How long a server that failed is left alone; its pieces are missing meanwhile."""
_LONGEST = 64 << 20
"""Of a value that is skipped because it is not what was asked for."""

log = logging.getLogger(__name__)

K = TypeVar("K")


class WantedPiece(NamedTuple):
    """A piece of blob ``digest`` under ``key``, and writable memory of its exact length."""

    digest: str
    key: str
    into: memoryview


class RedisPieces:
    """Reading from all servers of one setting. Blocking; safe from several threads."""

    def __init__(
        self, url: str, *, timeout_s: float, connections: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Nothing is contacted before the first call. Raises InvalidInput (REDIS_URL)."""
        self.nodes: Nodes = open_nodes(url, timeout_s=timeout_s, connections=connections)
        self._timeout_s, self._clock = timeout_s, clock
        self._lock = threading.Lock()
        self._left_alone: dict[str, float] = {}

    def read(self, wanted: Sequence[WantedPiece], landed: Callable[[int], None], stopped: Callable[[], bool]) -> None:
        """Fill what is there, and tell of each by its number. What is not there, or has another length, never lands.

        Raises Unavailable when every server that was asked failed, Stopped, and what ``landed`` raises.
        """

        def get(node: Node, numbers: Sequence[int]) -> None:
            with self.connection(node) as connection:
                if _get_into(connection, wanted, numbers, landed, stopped, self._timeout_s):
                    self.nodes.moved()

        self.each(self.by_node([(number, one.digest, one.key) for number, one in enumerate(wanted)]), get)

    def by_node(self, keys: Sequence[tuple[K, str, str]]) -> Mapping[Node, list[K]]:
        """Things by who has them, each given with its digest and key. Raises Unavailable."""
        found: dict[Node, list[K]] = defaultdict(list)
        try:
            for thing, digest, key in keys:
                node = self.nodes.of(digest, key)
                if node is not None:
                    found[node].append(thing)
        except (RedisError, OSError) as error:
            raise Unavailable(f"Redis Cluster failed: {error}", reason="CACHE_UNAVAILABLE") from error
        return found

    def each(self, jobs: Mapping[Node, list[K]], run: Callable[[Node, list[K]], None]) -> None:
        """``run`` for every node. One that fails is left alone for a while, and raises only if none works."""
        failure: Unavailable | None = None
        worked = False
        for node, things in jobs.items():
            if len(jobs) > 1 and self._clock() < self._left_alone.get(node.where, 0.0):
                continue
            try:
                run(node, things)
                worked = True
            except Unavailable as error:
                failure = error
                with self._lock:
                    self._left_alone[node.where] = self._clock() + COOL_DOWN_S
                if len(jobs) > 1:
                    log.warning("%s", error)
        if failure is not None and not worked:
            raise failure

    def close(self) -> None:
        self.nodes.close()

    @contextmanager
    def connection(self, node: Node) -> Iterator[Connection]:
        """A connection of the pool; closed instead of given back when answers may still be under way on it."""
        connection: Connection | None = None
        try:
            connection = node.pool.get_connection()
            yield connection
        except BaseException as error:
            if connection is not None:
                connection.disconnect()
            if isinstance(error, OutOfMemoryError):
                raise Exhausted(f"Redis at {node.where} is full: {error}", reason="CACHE_FULL") from error
            if isinstance(error, RedisError | OSError):
                raise Unavailable(f"Redis at {node.where} failed: {error}", reason="CACHE_UNAVAILABLE") from error
            raise
        finally:
            if connection is not None:
                node.pool.release(connection)


def _get_into(
    connection: Connection,
    wanted: Sequence[WantedPiece],
    numbers: Sequence[int],
    landed: Callable[[int], None],
    stopped: Callable[[], bool],
    idle_s: float,
) -> bool:
    """The pieces ``numbers`` over one connection. Returns whether the server says that others have some of them."""
    sock, moved = connection._sock, False
    incoming = Incoming(sock, idle_s)
    incoming.ready(stopped)
    sent = 0
    for done, number in enumerate(numbers):
        if stopped():
            raise Stopped
        ahead = numbers[sent : done + WINDOW]
        if ahead:
            sock.sendall(b"".join(_get(wanted[one].key) for one in ahead))
            sent += len(ahead)
        header = incoming.line()
        if header.startswith((b"-MOVED ", b"-ASK ", b"-TRYAGAIN", b"-CLUSTERDOWN")):
            moved = True
        elif header.startswith(b"-"):
            raise RedisError(header[1:].decode("utf-8", "replace"))
        elif _bulk(incoming, header, wanted[number].into):
            landed(number)
    incoming.give_back(connection.socket_timeout)
    return moved


def _get(key: str) -> bytes:
    name = key.encode()
    return b"*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n" % (len(name), name)


def _bulk(incoming: Incoming, header: bytes, into: memoryview) -> bool:
    """One answer's value into its place; False when it is none or no value of that length."""
    if not header.startswith(b"$") or not header[1:].lstrip(b"-").isdigit():
        raise Malformed(f"an answer that is no value: {header[:80]!r}")
    length = int(header[1:])
    if length < 0:
        return False
    if length > _LONGEST:
        raise Malformed(f"a value of {length} bytes where {len(into)} were written")
    if length == len(into):
        incoming.fill(into)
    else:
        incoming.skip(length)
    incoming.skip(2)
    return length == len(into)
