"""Ranges over HTTP/1.1, straight into the blob's memory, on connections that are kept.

An own reader over the socket: the standard library's parses every answer's headers as an e-mail and reads bodies
through a buffer. Requests are sent a few ahead of the answers, so that small blobs do not wait for the network.
"""

from __future__ import annotations

import re
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from premoe_servicekit.tls import Tls

from premoe_dataplane.plan import Scheme
from premoe_dataplane.sockets import Cut, Malformed
from premoe_dataplane.transports.base import Landed, Part
from premoe_dataplane.transports.http_pool import Address, HttpConnection, HttpPool, address_of
from premoe_runtime.formats.errors import CorruptData, PremoeError, Unavailable
from premoe_runtime.formats.pieces import Hole, piece, runs

WINDOW = 4
"""Requests on the wire of one connection."""
IDLE_S = 10.0
PLAN_EXPIRED = "PLAN_EXPIRED"
"""Reason of Unavailable: the URL is not valid any more, resolve again."""
_GONE = (404, 410, 416)
_MOST_HEADERS = 64
_MOST_TOLD = 4096
_TOLD = re.compile(r"(?P<reason>[A-Z][A-Z_]+): (?P<text>[^\n]+)\n?")
_MOST_DRAINED = 64 << 10
_RANGE = re.compile(rb"bytes (\d+)-(\d+)/(?:\d+|\*)")


class _Request(NamedTuple):
    """A range of a part's source, and the pieces that it holds."""

    part: Part
    target: str
    run: Hole
    pieces: tuple[int, ...]


@dataclass(slots=True)
class _Head:
    """Status and the headers that matter."""

    status: int
    length: int | None = None
    range: tuple[int, int] | None = None
    closes: bool = False


class HttpTransport:
    """Implements Transport for ``http``, http and https. ``tls``: what https is spoken with, mutual.

    A source that answers 404 has no piece that lands. 403 is Unavailable (PLAN_EXPIRED); another range than was asked
    for is CorruptData. Other refusals are what an expert store says in one line, and Unavailable of other servers. A
    kept connection that the server closed meanwhile costs one try on a fresh one.
    """

    scheme: Scheme = "http"

    def __init__(self, tls: Tls | None = None, *, idle_s: float = IDLE_S) -> None:
        self._pool = HttpPool(tls, idle_s)

    def read(self, parts: Sequence[Part], landed: Landed, stopped: Callable[[], bool]) -> None:
        asked: dict[Address, deque[_Request]] = {}
        for part in parts:
            address, target = address_of(part.source.url)
            for run, indices in _runs(part):
                asked.setdefault(address, deque()).append(_Request(part, target, run, indices))
        for address, requests in asked.items():
            try:
                self._read(address, requests, landed, stopped)
            except OSError as error:
                why = error.reason if isinstance(error, ssl.SSLError) and error.reason else error
                raise Unavailable(f"{address}: {why}", reason="SOURCE_UNAVAILABLE") from error

    def close(self) -> None:
        self._pool.close()

    def _read(self, address: Address, waiting: deque[_Request], landed: Landed, stopped: Callable[[], bool]) -> None:
        """All of ``waiting``, over as many connections as the server makes of it; each brings an answer."""
        fresh = False
        while waiting:
            connection = self._pool.take(address, fresh=fresh)
            before = len(waiting)
            try:
                connection.incoming.ready(stopped)
                _exchange(connection, waiting, landed)
            except BaseException as error:
                connection.close()
                if not isinstance(error, _Unanswered) or (len(waiting) == before and not connection.kept):
                    raise
                fresh = True
            else:
                self._pool.give(connection)


class _Unanswered(Cut):
    """The connection ended where an answer would have begun: nothing of the request was done."""


def _exchange(connection: HttpConnection, waiting: deque[_Request], landed: Landed) -> None:
    """Ask for what is waiting and take what is answered out of it, until all is, or the server wants no more."""
    sent = 0
    while waiting and not connection.closing:
        ahead = [_text(connection.address, waiting[number]) for number in range(sent, min(WINDOW, len(waiting)))]
        if ahead:
            try:
                connection.sock.sendall("".join(ahead).encode("ascii"))
            except (BrokenPipeError, ConnectionError) as error:
                raise _Unanswered(str(error)) from error
            sent += len(ahead)
        _answer(connection, waiting[0], landed)
        waiting.popleft()
        sent -= 1


def _text(address: Address, request: _Request) -> str:
    first = request.part.source.offset + request.run.offset
    return (
        f"GET {request.target} HTTP/1.1\r\nHost: {address.host_header}\r\n"
        f"Range: bytes={first}-{first + request.run.length - 1}\r\n\r\n"
    )


def _answer(connection: HttpConnection, request: _Request, landed: Landed) -> None:
    """One answer: its body into the part's memory, piece by piece."""
    head = _head(connection)
    connection.closing = head.closes
    where = f"{connection.address}"
    if head.status in _GONE:
        _drain(connection, head)
        return
    if head.status == 403:
        raise Unavailable(f"{where} does not take the plan's address any more", reason=PLAN_EXPIRED)
    if head.status not in (200, 206):
        raise _refused(connection, head)
    first = request.part.source.offset + request.run.offset
    wanted = (first, first + request.run.length - 1)
    # A server that knows no ranges sends all that there is.
    right = head.range == wanted if head.status == 206 else first == 0
    if not right or head.length != request.run.length:
        raise CorruptData(
            f"{where} sent bytes {head.range} of length {head.length}, asked for {wanted[0]} to {wanted[1]}",
            reason="WRONG_RANGE",
        )
    for index in request.pieces:
        one = piece(index, request.part.blob.num_bytes)
        connection.incoming.fill(request.part.into[one.offset : one.end])
        landed(request.part, index)


def _refused(connection: HttpConnection, head: _Head) -> PremoeError:
    """What the byte server says of a blob in one line, ``REASON: text``; of other servers only the status is told."""
    text = bytearray(head.length if head.length is not None and head.length <= _MOST_TOLD else 0)
    connection.incoming.fill(memoryview(text))
    told = _TOLD.fullmatch(text.decode("utf-8", "replace"))
    if told is None:
        return Unavailable(f"{connection.address} answered with status {head.status}", reason="HTTP_STATUS")
    # A fault that lies with the blob is no other one when the server is asked again.
    kind = PremoeError if head.status == 500 else Unavailable
    return kind(told["text"], reason=told["reason"])


def _head(connection: HttpConnection) -> _Head:
    line = connection.incoming.line
    try:
        status = line()
    except (Cut, ConnectionError) as error:
        raise _Unanswered(str(error)) from error
    words = status.split(b" ", 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
        raise Malformed("no answer of HTTP/1")
    head = _Head(int(words[1]), closes=words[0] == b"HTTP/1.0")
    for _ in range(_MOST_HEADERS):
        header = line()
        if not header:
            return head
        name, _, value = header.partition(b":")
        _note(head, name.strip().lower(), value.strip())
    raise Malformed("an answer with too many headers")


def _note(head: _Head, name: bytes, value: bytes) -> None:
    if name == b"content-length" and value.isdigit():
        head.length = int(value)
    elif name == b"content-range" and (found := _RANGE.fullmatch(value)):
        head.range = int(found[1]), int(found[2])
    elif name == b"connection":
        head.closes = value.lower() == b"close" or (head.closes and value.lower() != b"keep-alive")


def _drain(connection: HttpConnection, head: _Head) -> None:
    """Past a short body; a connection with a long one is not worth it."""
    if head.length is None or head.length > _MOST_DRAINED:
        connection.closing = True
    else:
        connection.incoming.skip(head.length)


def _runs(part: Part) -> list[tuple[Hole, tuple[int, ...]]]:
    """The ranges of a part, each with its pieces."""
    found = runs(part.pieces, part.blob.num_bytes)
    left = deque(part.pieces)
    whole = []
    for run in found:
        inside = []
        while left and piece(left[0], part.blob.num_bytes).offset < run.end:
            inside.append(left.popleft())
        whole.append((run, tuple(inside)))
    return whole
