from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from premoe_expert_store.leases import Leases

from premoe_runtime.formats.errors import NotFound

BLOBS = "abcdef"
MOST = 12


class LeasesMachine(RuleBasedStateMachine):
    """Leases of 10 s against a dict of their ends."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.leases = Leases(10.0, most=MOST, clock=lambda: self.now)
        self.known: dict[str, tuple[float, list[str]]] = {}

    def living(self) -> dict[str, tuple[float, list[str]]]:
        return {name: one for name, one in self.known.items() if one[0] > self.now}

    @rule(blobs=st.lists(st.sampled_from(BLOBS), max_size=5))
    def grant(self, blobs: list[str]) -> None:
        self.known = self.living()
        lease = self.leases.grant(blobs)
        self.known[lease.lease_id] = (lease.expires_at, blobs)
        while sum(len(one) for _, one in self.known.values()) > MOST:
            del self.known[next(iter(self.known))]

    @rule(number=st.integers(0, 20))
    def renew(self, number: int) -> None:
        names = list(self.known)
        if number >= len(names):
            return
        name = names[number]
        if name not in self.living():
            with pytest.raises(NotFound, match="has ended; resolve again"):
                self.leases.renew(name)
            return
        lease = self.leases.renew(name)
        assert lease == (name, self.now + 10.0)
        self.known[name] = (lease.expires_at, self.known.pop(name)[1])

    @rule(number=st.integers(0, 20))
    def release(self, number: int) -> None:
        names = list(self.known)
        name = names[number] if number < len(names) else "none of ours"
        self.leases.release(name)
        self.known.pop(name, None)

    @rule(seconds=st.floats(0.5, 6))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def blobs_are_held_by_those_that_live(self) -> None:
        self.leases.sweep()
        living = self.living()
        assert len(self.leases) == len(living)
        held = {blob for _, blobs in living.values() for blob in blobs}
        assert {blob for blob in BLOBS if self.leases.holds(blob)} == held


TestLeases = LeasesMachine.TestCase
