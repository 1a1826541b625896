"""One suite for every way to read blobs, against real servers."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import blake3
import pytest
from premoe_dataplane.plan import BlobPlan
from premoe_dataplane.stopped import Stopped
from premoe_dataplane.transports.base import Part
from support.blob_servers import KINDS, Served, serve

from premoe_runtime.formats.errors import PremoeError, Unavailable
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.formats.pieces import PIECE_BYTES, piece, piece_count

LONG = 3 * PIECE_BYTES + 777
"""Three whole pieces and a short one."""
SIZES = [1, 4096, PIECE_BYTES, PIECE_BYTES + 1, LONG]
UNTOUCHED = 0xA5


@pytest.fixture(params=KINDS, scope="module")
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(request.param, tmp_path_factory.mktemp(request.param.replace(" ", "-"))) as made:
        yield made


def blob(num_bytes: int, seed: int = 0) -> tuple[str, bytes]:
    data = random.Random(seed).randbytes(num_bytes)
    return blake3.blake3(data).hexdigest(), data


def part_of(served: Served, digest: str, data: bytes, pieces: Sequence[int] | None = None) -> Part:
    source = served.source(digest)
    plan = BlobPlan(served.expert(digest), digest, len(data), (source,))
    wanted = range(piece_count(len(data))) if pieces is None else pieces
    return Part(plan, source, memoryview(bytearray([UNTOUCHED]) * len(data)), tuple(wanted))


def read(served: Served, parts: Sequence[Part]) -> list[tuple[ExpertId, int]]:
    """What landed, in the order it was told."""
    found: list[tuple[ExpertId, int]] = []
    served.transport.read(parts, lambda part, index: found.append((part.blob.expert, index)), lambda: False)
    return found


@pytest.mark.parametrize("num_bytes", SIZES)
def test_every_piece_lands_once_and_right(served: Served, num_bytes: int) -> None:
    digest, data = blob(num_bytes)
    served.put(digest, data)
    part = part_of(served, digest, data)
    assert sorted(read(served, [part])) == [(part.blob.expert, index) for index in range(piece_count(num_bytes))]
    assert bytes(part.into) == data


@pytest.mark.parametrize("wanted", [(0,), (1,), (3,), (0, 1), (1, 3), (0, 2, 3)])
def test_only_what_is_wanted_is_touched(served: Served, wanted: tuple[int, ...]) -> None:
    digest, data = blob(LONG, 1)
    served.put(digest, data)
    part = part_of(served, digest, data, wanted)
    assert sorted(index for _, index in read(served, [part])) == list(wanted)
    for index in range(piece_count(LONG)):
        one = piece(index, LONG)
        expected = data[one.offset : one.end] if index in wanted else bytes([UNTOUCHED]) * one.length
        assert bytes(part.into[one.offset : one.end]) == expected


def test_many_are_read_in_one_call_and_missing_ones_are_left_out(served: Served) -> None:
    blobs = [blob(PIECE_BYTES + seed, seed) for seed in range(2, 9)]
    for digest, data in blobs[::2]:
        served.put(digest, data)
    parts = [part_of(served, digest, data) for digest, data in blobs]
    if not served.may_lack:
        with pytest.raises(PremoeError):  # its server fails as a whole
            read(served, parts)
        return
    landed = read(served, parts)
    assert {expert for expert, _ in landed} == {one.blob.expert for one in parts[::2]}
    assert len(landed) == len(parts[::2]) * 2
    assert all(bytes(one.into) == data for one, (_, data) in list(zip(parts, blobs, strict=True))[::2])
    assert all(bytes(one.into) == bytes([UNTOUCHED]) * len(one.into) for one in parts[1::2])


def test_parts_of_several_blobs_with_and_without_their_beginning(served: Served) -> None:
    blobs = [blob(LONG, seed) for seed in range(20, 24)]
    for digest, data in blobs:
        served.put(digest, data)
    wanted = [(2, 3), (0, 1, 2, 3), (1,), (0,)]
    parts = [part_of(served, *one, pieces) for one, pieces in zip(blobs, wanted, strict=True)]
    landed = read(served, parts)
    assert sorted(landed) == sorted((one.blob.expert, index) for one in parts for index in one.pieces)
    for one, (_, data) in zip(parts, blobs, strict=True):
        for index in one.pieces:
            where = piece(index, LONG)
            assert bytes(one.into[where.offset : where.end]) == data[where.offset : where.end]


def test_nothing_asked_is_nothing_read(served: Served) -> None:
    assert read(served, []) == []


def test_threads_do_not_mix_bytes_up(served: Served) -> None:
    blobs = [blob(PIECE_BYTES + 10, seed) for seed in range(30, 36)]
    for digest, data in blobs:
        served.put(digest, data)

    def once(one: tuple[str, bytes]) -> bytes:
        part = part_of(served, *one)
        read(served, [part])
        return bytes(part.into)

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(once, blobs * 2)) == [data for _, data in blobs * 2]


def test_nobody_wants_it_any_more(served: Served) -> None:
    digest, data = blob(LONG, 40)
    served.put(digest, data)
    told: list[int] = []
    with pytest.raises(Stopped):
        served.transport.read([part_of(served, digest, data)], lambda part, index: told.append(index), lambda: True)
    assert told == []


def test_who_is_told_may_end_it_and_the_next_read_is_whole(served: Served) -> None:
    digest, data = blob(LONG, 41)
    served.put(digest, data)

    class Enough(Exception):
        pass

    def landed(part: Part, index: int) -> None:
        raise Enough

    for _ in range(3):
        with pytest.raises(Enough):
            served.transport.read([part_of(served, digest, data)], landed, lambda: False)
    part = part_of(served, digest, data)
    assert len(read(served, [part])) == piece_count(LONG)
    assert bytes(part.into) == data


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_that_is_down_and_nothing_is_left_behind(kind: str, tmp_path: Path) -> None:
    threads = {thread.ident for thread in threading.enumerate()}
    descriptors = set(os.listdir("/proc/self/fd"))
    with serve(kind, tmp_path) as served:
        digest, data = blob(4096, 50)
        served.put(digest, data)
        part = part_of(served, digest, data)
        assert read(served, [part]) == [(part.blob.expert, 0)]
        served.take_down()
        if kind == "file":
            assert read(served, [part_of(served, digest, data)]) == []
        else:
            with pytest.raises(Unavailable):
                read(served, [part_of(served, digest, data)])
    # A server's threads of the test may need a moment more than ours.
    for _ in range(200):
        left = {thread.name for thread in threading.enumerate() if thread.ident not in threads}
        opened = set(os.listdir("/proc/self/fd")) - descriptors
        if not left and not opened:
            return
        time.sleep(0.05)
    # Libraries of others keep a few of their own, for the process.
    assert kind in ("object", "grpc"), (left, opened)
    assert not any(name.startswith("premoe") for name in left)
