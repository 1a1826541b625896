"""Plans to messages and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from premoe.experts.v1 import experts_pb2 as pb
from premoe_dataplane.plan import SCHEMES, BlobPlan, Source, SwapPlan
from premoe_dataplane.wire import TIERS, plan_of_wire, plan_to_wire

from premoe_runtime.formats.errors import CorruptData
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.formats.pieces import PIECE_BYTES, piece_count

SOURCES = st.builds(
    Source,
    scheme=st.sampled_from(SCHEMES),
    tier=st.sampled_from(sorted(TIERS)),
    url=st.text(max_size=20),
    offset=st.integers(0, 1 << 40),
)


@st.composite
def plans(draw: st.DrawFn) -> SwapPlan:
    num_bytes = draw(st.integers(1, 3 * PIECE_BYTES))
    checks = st.lists(st.integers(0, 2**32 - 1), min_size=piece_count(num_bytes), max_size=piece_count(num_bytes))
    blobs = [
        BlobPlan(
            ExpertId(draw(st.integers(0, 99)), draw(st.integers(0, 999))),
            draw(st.text("0123456789abcdef", min_size=64, max_size=64)),
            num_bytes,
            tuple(draw(st.lists(SOURCES, max_size=3))),
            tuple(draw(st.one_of(st.just([]), checks))),
        )
        for _ in range(draw(st.integers(1, 4)))
    ]
    return SwapPlan(blobs, draw(st.text(max_size=8)), draw(st.integers(0, 2**32)))


@given(plans())
def test_a_plan_is_the_same_after_the_wire(plan: SwapPlan) -> None:
    experts = [blob.expert for blob in plan.blobs]
    response = pb.ResolveResponse.FromString(plan_to_wire(plan).SerializeToString())
    back = plan_of_wire(response, experts, plan.blobs[0].num_bytes, "store")
    assert (back.lease_id, back.expires_at) == (plan.lease_id, plan.expires_at)
    for one, other in zip(back.blobs, plan.blobs, strict=True):
        assert (one.expert, one.digest, one.num_bytes, one.sources, one.checks) == (
            other.expert,
            other.digest,
            other.num_bytes,
            other.sources,
            other.checks,
        )


def sources(**fields: object) -> pb.BlobSources:
    return pb.BlobSources(expert=pb.ExpertId(layer=1, expert=2), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "blobs",
    [
        [],
        [sources(length=5)],
        [sources(codec="zipnn")],
        [sources(piece_bytes=4096)],
        [sources(piece_bytes=PIECE_BYTES, crc32c=[1, 2])],
        [pb.BlobSources(expert=pb.ExpertId(layer=2, expert=2))],
    ],
)
def test_an_answer_about_other_blobs_is_damage(blobs: list[pb.BlobSources]) -> None:
    with pytest.raises(CorruptData):
        plan_of_wire(pb.ResolveResponse(blobs=blobs), [ExpertId(1, 2)], 4096, "store")


def test_a_store_of_before_pieces_and_an_unknown_scheme_are_taken() -> None:
    blob = sources(sources=[pb.Source(scheme="rdma"), pb.Source(scheme="grpc")])
    (found,) = plan_of_wire(pb.ResolveResponse(blobs=[blob]), [ExpertId(1, 2)], 4096, "store").blobs
    assert (found.num_bytes, found.checks, found.sources) == (4096, (), (Source("grpc", "object"),))
