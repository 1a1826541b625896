from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from premoe_expert_store.cache.index import Found, blob_path, rebuild
from premoe_expert_store.filling.landing import ORIGINS, Landing, Origin

from premoe_runtime.formats.pieces import PIECE_BYTES, pieces

NUM_BYTES = 5 * PIECE_BYTES + 17
COUNT = 6


class LandingMachine(RuleBasedStateMachine):
    """A landing against a dict of pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.there: dict[int, Origin] = {}
        self.right = False
        self.landing = Landing(NUM_BYTES, checked=True)
        self.blind = Landing(NUM_BYTES, checked=False)

    @precondition(lambda self: not self.right)
    @rule(indices=st.sets(st.integers(0, COUNT - 1)), origin=st.sampled_from(ORIGINS))
    def land(self, indices: set[int], origin: Origin) -> None:
        for one in (self.landing, self.blind):
            one.land(sorted(indices), origin)
        self.there.update(dict.fromkeys(indices, origin))

    @precondition(lambda self: not self.right)
    @rule()
    def lose(self) -> None:
        self.landing.lose_all()
        self.blind.lose_all()
        self.there.clear()

    @precondition(lambda self: len(self.there) == COUNT)
    @rule()
    def finish(self) -> None:
        self.landing.found_right()
        self.blind.found_right()
        self.right = True

    @invariant()
    def it_says_what_is_there(self) -> None:
        places = pieces(NUM_BYTES)
        assert list(self.landing.missing) == [index for index in range(COUNT) if index not in self.there]
        assert self.landing.there_bytes == sum(places[index].length for index in self.there)
        first = next((index for index in range(COUNT) if index not in self.there), COUNT)
        assert self.landing.readable_bytes == (places[first - 1].end if first else 0)
        assert self.blind.readable_bytes == (NUM_BYTES if self.right else 0)
        farthest = max(self.there.values(), key=ORIGINS.index, default="node")
        assert self.landing.origin == farthest
        assert all(self.landing.came_from(origin) == (origin in self.there.values()) for origin in ORIGINS)
        for origin in ORIGINS:
            assert self.landing.not_from(origin) == [index for index in range(COUNT) if self.there.get(index) != origin]


TestLanding = LandingMachine.TestCase

digests = st.text("0123456789abcdef", min_size=64, max_size=64)
names = st.one_of(
    digests.map(blob_path),
    digests.map(lambda digest: f"blobs/zz/{digest}"),
    st.text("abz/.0", max_size=20).map(lambda name: f"blobs/{name}"),
)


@given(
    st.lists(
        st.builds(Found, names, st.integers(0, 3), st.floats(0, 1e9)), max_size=20, unique_by=lambda found: found.path
    )
)
def test_an_index_is_made_of_all_that_lies_there(found: list[Found]) -> None:
    kept, foreign = rebuild(found)
    assert len(kept) + len(foreign) == len(found)
    assert {blob_path(digest) for digest in kept}.isdisjoint(foreign)
    by_path = {one.path: one for one in found}
    assert all(by_path[blob_path(digest)][1:] == one for digest, one in kept.items())
    assert all(one.num_bytes for one in kept.values())
    assert [one.used for one in kept.values()] == sorted(one.used for one in kept.values())
    rebuilt, rest = rebuild(Found(blob_path(digest), *one) for digest, one in kept.items())
    assert (rebuilt, rest) == (kept, [])
