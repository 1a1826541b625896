"""Redis as a blob cache: one key a piece, over as many servers as are named.

A value evicted or cut short is a hole; whoever reads checks the sums of pieces or the digest of the whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from premoe_dataplane.blob_cache import Wanted, blob_key, piece_key
from premoe_dataplane.redis_nodes import Connection, Node
from premoe_dataplane.redis_pieces import WINDOW, RedisPieces, WantedPiece
from premoe_runtime.formats.pieces import Hole, piece_count, pieces, touched

EXISTS_WINDOW = 512

Command = tuple[str | bytes | memoryview, ...]


class RedisCache:
    """Implements BlobCache. Nothing is contacted before the first call. Raises InvalidInput on a bad URL.

    ``url`` as ``redis_nodes`` says. Of several servers one that is down costs its pieces; all down is Unavailable.
    """

    def __init__(self, url: str, *, timeout_s: float = 1.0, connections: int = 16) -> None:
        self._pieces = RedisPieces(url, timeout_s=timeout_s, connections=connections)

    def read(self, wanted: Sequence[Wanted]) -> list[tuple[Hole, ...]]:
        places = [
            (number, piece, piece_key(blob_key(one.digest), index))
            for number, one in enumerate(wanted)
            for index, piece in enumerate(pieces(len(one.into)))
        ]
        missing = set(range(len(places)))
        asked = [
            WantedPiece(wanted[number].digest, key, wanted[number].into[piece.offset : piece.end])
            for number, piece, key in places
        ]
        self._pieces.read(asked, missing.discard, lambda: False)
        holes: list[list[Hole]] = [[] for _ in wanted]
        for one in sorted(missing):
            number, piece, _ = places[one]
            holes[number].append(piece)
        return [tuple(found) for found in holes]

    def write(self, digest: str, blob: memoryview, holes: Sequence[Hole]) -> None:
        parts = [(piece_key(blob_key(digest), index), piece) for index, piece in touched(len(blob), holes)]

        def put(node: Node, mine: Sequence[tuple[str, Hole]]) -> None:
            with self._pieces.connection(node) as connection:
                for _ in _windowed(connection, (("SET", key, blob[one.offset : one.end]) for key, one in mine)):
                    pass

        self._pieces.each(self._pieces.by_node([(part, digest, part[0]) for part in parts]), put)

    def holds(self, digests: Sequence[str], num_bytes: int) -> list[bool]:
        count, found = piece_count(num_bytes), dict.fromkeys(digests, 0)

        def ask(node: Node, mine: Sequence[tuple[str, tuple[str, ...]]]) -> None:
            with self._pieces.connection(node) as connection:
                answers = _windowed(connection, (("EXISTS", *keys) for _, keys in mine), EXISTS_WINDOW)
                for (digest, _), answer in zip(mine, answers, strict=True):
                    found[digest] += answer if isinstance(answer, int) else 0

        jobs = [((digest, keys), digest, keys[0]) for digest in found for keys in self._together(digest, count)]
        self._pieces.each(self._pieces.by_node(jobs), ask)
        return [found[digest] == count for digest in digests]

    def forget(self, digest: str, num_bytes: int) -> None:
        def drop(node: Node, mine: Sequence[tuple[str, ...]]) -> None:
            with self._pieces.connection(node) as connection:
                list(_windowed(connection, (("UNLINK", *keys) for keys in mine)))

        jobs = [(keys, digest, keys[0]) for keys in self._together(digest, piece_count(num_bytes))]
        self._pieces.each(self._pieces.by_node(jobs), drop)

    def close(self) -> None:
        self._pieces.close()

    def _together(self, digest: str, count: int) -> list[tuple[str, ...]]:
        """The keys of a blob, as many in one command as may be."""
        keys = [piece_key(blob_key(digest), index) for index in range(count)]
        return [(key,) for key in keys] if self._pieces.nodes.by_key else [tuple(keys)]


def _windowed(connection: Connection, commands: Iterable[Command], window: int = WINDOW) -> Iterator[object]:
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
