"""The host tier: places, holds, pins, and which blob gives way."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from premoe_runtime.formats.errors import Conflict, CorruptData, Exhausted
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.residency.host_arena import MIN_BLOBS, HostArena
from premoe_runtime.residency.host_tier import HostTier, available_memory, default_host_bytes, digest_of
from premoe_runtime.residency.plan import STAGING_BYTES

BLOB = 4096
ZERO = digest_of(torch.zeros(BLOB, dtype=torch.uint8))
A, B, C, D = (ExpertId(0, expert) for expert in range(4))


def tier(blobs: int) -> HostTier:
    return HostTier(HostArena(BLOB, blobs * BLOB))


def filled(blobs: int, *experts: ExpertId) -> HostTier:
    host = tier(blobs)
    for expert in experts:
        host.reserve(expert)
        host.commit(expert, ZERO)
    return host


def test_the_least_recently_used_blob_gives_way() -> None:
    host = filled(3, A, B, C)
    host.hold(A)
    host.let_go(A)
    host.reserve(D)
    assert host.experts() == {A, C}


def test_held_and_pinned_blobs_stay() -> None:
    host = filled(4, A, B, C, D)
    host.hold(A)
    host.pin([B])
    assert host.available == 2
    host.reserve(ExpertId(1, 0))
    host.reserve(ExpertId(1, 1))
    assert host.experts() == {A, B}
    with pytest.raises(Exhausted, match="all 4 blobs of the host tier are pinned or in use") as caught:
        host.reserve(ExpertId(1, 2))
    assert caught.value.reason == "HOST_TIER_FULL"
    host.unpin([B])
    host.reserve(ExpertId(1, 2))
    assert host.experts() == {A}


def test_a_reservation_may_be_given_back() -> None:
    host = tier(2)
    host.reserve(A)
    with pytest.raises(Conflict):
        host.reserve(A)
    host.discard(A)
    host.discard(A)
    assert host.available == 2
    host.check_integrity()


def test_pins_leave_a_way_through() -> None:
    host = tier(4)
    host.pin([A, B])
    host.pin([A, B])
    with pytest.raises(Exhausted, match="leaves no room to swap in a host tier of 4"):
        host.pin([C])
    host.unpin([A])
    assert host.is_pinned(A)
    host.unpin([A])
    host.pin([C])
    assert not host.is_pinned(A)


def test_integrity_finds_a_changed_byte() -> None:
    host = filled(2, A)
    host.check_integrity()
    host.arena.blob(host.place(A))[7] = 1
    with pytest.raises(CorruptData, match="layer 0 expert 0 changed in the host tier"):
        host.check_integrity()


def test_the_default_holds_a_pattern_and_leaves_memory_to_others() -> None:
    gib = 1 << 30
    assert default_host_bytes(9 << 20, 960, 64 * gib) == (960 + MIN_BLOBS) * (9 << 20)
    assert default_host_bytes(9 << 20, 960, 8 * gib) == 2 * gib
    assert default_host_bytes(4096, 8, 64 * gib) == STAGING_BYTES
    assert available_memory() > 0


experts = st.integers(0, 9).map(lambda index: ExpertId(0, index))


class Books(RuleBasedStateMachine):
    """Any order of calls leaves the books right."""

    def __init__(self) -> None:
        super().__init__()
        self.host = tier(6)
        self.held: list[ExpertId] = []
        self.pinned: list[ExpertId] = []

    @rule(expert=experts)
    def reserve(self, expert: ExpertId) -> None:
        if expert not in self.host and not self.host.is_filling(expert) and self.host.available:
            self.host.reserve(expert)

    @rule(expert=experts, whole=st.booleans())
    def end_reading(self, expert: ExpertId, whole: bool) -> None:
        if not self.host.is_filling(expert):
            return
        if whole:
            self.host.arena.blob(self.host._filling[expert]).zero_()
            self.host.commit(expert, ZERO)
        else:
            self.host.discard(expert)

    @rule(expert=experts)
    def hold(self, expert: ExpertId) -> None:
        if expert in self.host:
            self.host.hold(expert)
            self.held.append(expert)

    @rule(index=st.integers(0, 99))
    def let_go(self, index: int) -> None:
        if self.held:
            self.host.let_go(self.held.pop(index % len(self.held)))

    @rule(expert=experts)
    def pin(self, expert: ExpertId) -> None:
        try:
            self.host.pin([expert])
        except Exhausted:
            return
        self.pinned.append(expert)

    @rule(index=st.integers(0, 99))
    def unpin(self, index: int) -> None:
        if self.pinned:
            self.host.unpin([self.pinned.pop(index % len(self.pinned))])

    @invariant()
    def kept_blobs_are_there(self) -> None:
        self.host.check_integrity()
        assert set(self.held) <= self.host.experts()


Books.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestBooks = Books.TestCase


def mapped() -> bool:
    return "premoe-host-tier" in Path("/proc/self/maps").read_text()


def test_an_arena_attached_by_its_file_is_the_same_memory_and_goes_with_its_last_user() -> None:
    gc.collect()
    before = mapped()
    arena = HostArena(BLOB, 3 * BLOB)
    other = HostArena.attach(os.dup(arena.fd), BLOB, arena.capacity)
    other.blob(2)[5] = 7
    assert arena.blob(2)[5] == 7
    assert arena.blob(0).count_nonzero() == 0
    fds = arena.fd, other.fd
    del arena, other
    assert mapped() == before
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_an_arena_takes_pages_when_they_are_written() -> None:
    arena = HostArena(1 << 20, 1 << 30)
    arena.blob(3)[:] = 1
    assert os.fstat(arena.fd).st_blocks * 512 <= 4 << 20


def test_an_arena_beyond_the_address_space_is_refused() -> None:
    with pytest.raises(Exhausted, match="less host memory"):
        HostArena(1 << 20, 1 << 62)
