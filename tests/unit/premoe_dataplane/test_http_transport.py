"""What HTTP servers may do wrong, on real sockets."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import blake3
import pytest
from premoe_dataplane.plan import BlobPlan, Source
from premoe_dataplane.stopped import Stopped
from premoe_dataplane.transports.base import Part
from premoe_dataplane.transports.http import PLAN_EXPIRED, HttpTransport
from support.range_server import (
    Answer,
    RangeServer,
    expired,
    failing,
    flipped,
    hanging_up,
    honest,
    range_server,
    shifted,
    silent,
    telling,
    trickling,
    truncated,
    whole,
)

from premoe_runtime.formats.errors import CorruptData, PremoeError, Unavailable
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.formats.pieces import PIECE_BYTES, piece_count

JOIN_S = 20.0
LONG = 2 * PIECE_BYTES + 5


@pytest.fixture
def server() -> Iterator[RangeServer]:
    with range_server() as made:
        yield made


@pytest.fixture
def http() -> Iterator[HttpTransport]:
    made = HttpTransport(idle_s=5)
    yield made
    made.close()


def part_of(server: RangeServer, seed: int = 0, num_bytes: int = LONG) -> Part:
    data = random.Random(seed).randbytes(num_bytes)
    digest = blake3.blake3(data).hexdigest()
    server.blobs[digest] = data
    source = Source("http", "node", server.url(digest))
    blob = BlobPlan(ExpertId(0, seed), digest, num_bytes, (source,))
    return Part(blob, source, memoryview(bytearray(num_bytes)), tuple(range(piece_count(num_bytes))))


def read(http: HttpTransport, parts: list[Part]) -> int:
    landed: list[int] = []
    http.read(parts, lambda part, index: landed.append(index), lambda: False)
    return len(landed)


def right(server: RangeServer, part: Part) -> bool:
    return part.into == server.blobs[part.blob.digest]


def test_a_connection_is_kept_and_a_stale_one_costs_a_fresh_one(server: RangeServer, http: HttpTransport) -> None:
    parts = [part_of(server, seed) for seed in range(3)]
    server.scripts.extend([honest, hanging_up])
    for part in parts:
        assert read(http, [part]) == 3
        assert right(server, part)
    assert server.connections == 2


def test_a_server_that_hangs_up_after_each_answer_is_asked_for_the_rest(
    server: RangeServer, http: HttpTransport
) -> None:
    parts = [part_of(server, seed, 4096) for seed in range(6)]
    server.scripts.extend([hanging_up] * 6)
    assert read(http, parts) == 6
    assert all(right(server, part) for part in parts)


BROKEN: dict[str, tuple[Answer, type[PremoeError], str]] = {
    "another range": (shifted, CorruptData, "WRONG_RANGE"),
    "half a body": (truncated, Unavailable, "SOURCE_UNAVAILABLE"),
    "an old address": (expired, Unavailable, PLAN_EXPIRED),
    "its own trouble": (failing, Unavailable, "HTTP_STATUS"),
}


@pytest.mark.parametrize("case", BROKEN.values(), ids=BROKEN.keys())
def test_what_is_wrong_is_an_error_and_the_next_read_is_right(
    server: RangeServer, http: HttpTransport, case: tuple[Answer, type[PremoeError], str]
) -> None:
    script, kind, reason = case
    part = part_of(server)
    server.scripts.append(script)
    with pytest.raises(kind) as caught:
        read(http, [part])
    assert caught.value.reason == reason
    assert "127.0.0.1" in str(caught.value)
    assert read(http, [part]) == 3
    assert right(server, part)


def test_what_the_server_says_of_a_blob_is_the_error(server: RangeServer, http: HttpTransport) -> None:
    part = part_of(server)
    server.scripts.append(telling)
    with pytest.raises(PremoeError) as caught:
        read(http, [part])
    assert type(caught.value) is PremoeError
    assert (caught.value.reason, str(caught.value)) == (
        "BLOB_LOST",
        "layer 0 expert 0 is missing in the object store; run premoe pack verify",
    )
    assert read(http, [part]) == 3


def test_bytes_are_not_judged_here(server: RangeServer, http: HttpTransport) -> None:
    part = part_of(server)
    server.scripts.append(flipped)
    assert read(http, [part]) == 3
    assert not right(server, part)


def test_a_server_without_ranges_serves_whole_blobs_only(server: RangeServer, http: HttpTransport) -> None:
    part = part_of(server)
    server.scripts.append(whole)
    assert read(http, [part]) == 3
    assert right(server, part)
    server.scripts.append(whole)
    tail = Part(part.blob, part.source, part.into, (1,))
    with pytest.raises(CorruptData):
        read(http, [tail])


def test_silence_is_bounded(server: RangeServer) -> None:
    http, part = HttpTransport(idle_s=0.3), part_of(server)
    server.scripts.append(silent)
    with pytest.raises(Unavailable, match=r"nothing came for 0\.3 s"):
        read(http, [part])
    http.close()


def test_a_body_that_trickles_is_bounded_too(server: RangeServer) -> None:
    http, part = HttpTransport(idle_s=0.3), part_of(server)
    server.scripts.append(trickling)
    with pytest.raises(Unavailable, match=r"only \d+ bytes came in"):
        read(http, [part])
    http.close()


def test_nobody_waits_for_a_silent_server_once_nobody_wants_its_bytes(server: RangeServer) -> None:
    http, part, unwanted = HttpTransport(idle_s=3600), part_of(server), threading.Event()
    begun = threading.Event()
    server.scripts.append(silent)
    with ThreadPoolExecutor(1) as thread:
        reading = thread.submit(http.read, [part], lambda part, index: begun.set(), unwanted.is_set)
        assert begun.wait(JOIN_S)
        unwanted.set()
        assert isinstance(reading.exception(JOIN_S), Stopped)
    http.close()


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/x", "http://", "http://a/b c", "http://a:port/", "nonsense"])
def test_what_is_no_url_is_told(http: HttpTransport, server: RangeServer, url: str) -> None:
    part = part_of(server)
    with pytest.raises(CorruptData, match="no URL"):
        read(http, [Part(part.blob, Source("http", "node", url), part.into, part.pieces)])


def test_https_without_tls_files_is_one_line(http: HttpTransport, server: RangeServer) -> None:
    part = part_of(server)
    url = part.source.url.replace("http:", "https:")
    with pytest.raises(Unavailable, match="has no TLS files"):
        read(http, [Part(part.blob, Source("http", "node", url), part.into, part.pieces)])
