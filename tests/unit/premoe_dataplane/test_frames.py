"""Frames of Fetch: coded by hand, equal to the generated code."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from premoe.experts.v1 import experts_pb2 as pb
from premoe_dataplane.frames import Frame, decode, encode
from premoe_dataplane.wire import TIERS, tier_of_wire

from premoe_runtime.formats.errors import CorruptData

INDICES = st.integers(0, 2**32 - 1)
OFFSETS = st.integers(0, 2**64 - 1)
DATA = st.binary(max_size=300)


def same(frame: Frame, message: pb.FetchResponse) -> bool:
    return (frame.index, frame.offset, bytes(frame.data), frame.tier) == (
        message.index,
        message.offset,
        message.data,
        tier_of_wire(message.tier),
    )


@given(INDICES, OFFSETS, DATA, st.sampled_from(sorted(TIERS)))
def test_protobuf_reads_what_is_written(index: int, offset: int, data: bytes, tier: str) -> None:
    message = encode(index, offset, memoryview(data), tier)  # type: ignore[arg-type]
    parsed = pb.FetchResponse.FromString(message)
    assert parsed == pb.FetchResponse(index=index, offset=offset, data=data, tier=TIERS[tier])  # type: ignore[index]
    assert len(message) == parsed.ByteSize()
    assert same(decode(message), parsed)


FIELDS = st.one_of(
    st.builds(pb.FetchResponse, index=INDICES),
    st.builds(pb.FetchResponse, offset=OFFSETS),
    st.builds(pb.FetchResponse, data=DATA),
    st.builds(pb.FetchResponse, tier=st.integers(0, 9)),
    # Of later stores: other numbers of every wire type.
    st.builds(pb.BlobSources, crc32c=st.lists(st.integers(0, 9), max_size=2), codec=st.text(max_size=3)),
)


@given(st.lists(FIELDS, max_size=6))
def test_fields_come_in_any_order_and_more_than_once(fields: list[pb.FetchResponse | pb.BlobSources]) -> None:
    message = b"".join(field.SerializeToString() for field in fields)
    assert same(decode(message), pb.FetchResponse.FromString(message))


@given(st.binary(max_size=24))
def test_any_bytes_are_read_as_protobuf_reads_them(message: bytes) -> None:
    try:
        parsed = pb.FetchResponse.FromString(message)
    except Exception:
        with pytest.raises(CorruptData, match="frame of Fetch"):
            decode(message)
    else:
        assert same(decode(message), parsed)


def test_data_is_not_copied_again() -> None:
    message = encode(1, 2, bytes(100), "node")
    assert decode(message).data.obj is message
