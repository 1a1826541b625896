from __future__ import annotations

import os
import random
from collections.abc import Iterator

import blake3
import pytest
from hypothesis import given
from hypothesis import strategies as st
from premoe_expert_store.cache.whole import RunningDigest, digest_of, is_right, wrong_pieces

from premoe_runtime.formats.pieces import PIECE_BYTES, pieces
from premoe_runtime.packs.checks import piece_checks

NUM_BYTES = 3 * PIECE_BYTES + 100
DATA = random.Random(0).randbytes(NUM_BYTES)
DIGEST = blake3.blake3(DATA).hexdigest()


@pytest.fixture(scope="module")
def fd() -> Iterator[int]:
    made = os.memfd_create("blob")
    os.write(made, DATA)
    yield made
    os.close(made)


@given(st.lists(st.sampled_from(range(4)), unique=True))
def test_parts_may_come_in_any_order_or_not_at_all(fd: int, order: list[int]) -> None:
    running = RunningDigest()
    for index in order:
        at = pieces(NUM_BYTES)[index]
        running.offer(at.offset, memoryview(DATA)[at.offset : at.end])
    assert running.finish(fd, NUM_BYTES) == DIGEST


def test_a_file_is_told_from_a_wrong_one(fd: int) -> None:
    sums = piece_checks(DATA)
    assert digest_of(fd, NUM_BYTES) == DIGEST
    assert is_right(fd, NUM_BYTES, DIGEST, sums)
    assert is_right(fd, NUM_BYTES, DIGEST, ())
    assert not is_right(fd, NUM_BYTES, DIGEST, (*sums[:-1], 0))
    assert not is_right(fd, NUM_BYTES + 1, DIGEST, ()), "a file that ends early"
    assert digest_of(-1, NUM_BYTES) != DIGEST


def test_pieces_are_told_apart_wherever_they_begin() -> None:
    sums = piece_checks(DATA)
    bad = bytearray(DATA)
    bad[PIECE_BYTES] ^= 1
    assert wrong_pieces(memoryview(bad), range(4), sums, NUM_BYTES) == [1]
    assert wrong_pieces(memoryview(bad)[PIECE_BYTES:], [1, 2, 3], sums, NUM_BYTES, PIECE_BYTES) == [1]
