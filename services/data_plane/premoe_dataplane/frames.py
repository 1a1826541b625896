"""Frames of Fetch, byte for byte what protobuf makes of them, without its copies (ADR 3, data-plane.md section 4)."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.message import DecodeError
from premoe.experts.v1 import experts_pb2 as pb

from premoe_dataplane.plan import Tier
from premoe_dataplane.wire import TIERS, tier_of_wire
from premoe_runtime.formats.errors import CorruptData

FRAME_BYTES = 1 << 20
"""Most bytes of data in a frame."""

# Field number and wire type, as they lie on the wire: varints, and a length with that many bytes.
_INDEX, _OFFSET, _DATA, _TIER = 0x08, 0x10, 0x1A, 0x20
_MAX_VARINT_BYTES = 10


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """Bytes of the ``index``-th blob asked for. ``data`` is a view of the message; ``tier`` as ``tier_of_wire``."""

    index: int
    offset: int
    data: memoryview
    tier: str


def encode(index: int, offset: int, data: bytes | bytearray | memoryview, tier: Tier) -> bytes:
    """A FetchResponse on the wire. Its data come last, so that they are copied once."""
    head = bytearray()
    for tag, value in ((_INDEX, index), (_OFFSET, offset), (_TIER, TIERS[tier])):
        if value:
            head.append(tag)
            _put(head, value)
    if len(data):
        head.append(_DATA)
        _put(head, len(data))
    return b"".join((head, data))


def decode(message: bytes) -> Frame:
    """A FetchResponse off the wire. Raises CorruptData when it is none."""
    found = {_INDEX: 0, _OFFSET: 0, _TIER: 0}
    data = memoryview(b"")
    at = 0
    try:
        while at < len(message):
            tag = message[at]
            value, at = _take(message, at + 1)
            if tag == _DATA:
                if at + value > len(message):
                    return _by_protobuf(message)
                data = memoryview(message)[at : at + value]
                at += value
            elif tag in found:
                found[tag] = value
            else:
                return _by_protobuf(message)
    except (IndexError, OverflowError):
        return _by_protobuf(message)
    if found[_INDEX] >> 32 or found[_TIER] >> 31:
        return _by_protobuf(message)
    return Frame(found[_INDEX], found[_OFFSET], data, tier_of_wire(pb.Tier.ValueType(found[_TIER])))


def _by_protobuf(message: bytes) -> Frame:
    """What is unusual (fields of a later store) or wrong is the generated code's business."""
    try:
        parsed = pb.FetchResponse.FromString(message)
    except DecodeError as error:
        raise CorruptData(f"a frame of Fetch is no message: {error}", reason="FRAME_INVALID") from error
    return Frame(parsed.index, parsed.offset, memoryview(parsed.data), tier_of_wire(parsed.tier))


def _put(head: bytearray, value: int) -> None:
    while value > 0x7F:
        head.append(value & 0x7F | 0x80)
        value >>= 7
    head.append(value)


def _take(message: bytes, at: int) -> tuple[int, int]:
    """A varint, and where it ends. Raises IndexError when it is cut short, OverflowError beyond 64 bits."""
    value = 0
    for shift in range(0, 7 * _MAX_VARINT_BYTES, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                raise OverflowError
            return value, at
    raise OverflowError
