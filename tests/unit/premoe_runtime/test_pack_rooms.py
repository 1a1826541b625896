"""Memory that packing fills again and again, and the one pass that identifies what lies in it."""

from __future__ import annotations

from itertools import pairwise

import blake3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from premoe_runtime.formats.pieces import PIECE_BYTES
from premoe_runtime.packs.checks import piece_checks
from premoe_runtime.packs.contents import TensorInfo
from premoe_runtime.packs.identity import identify
from premoe_runtime.packs.rooms import Rooms


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_a_room_keeps_its_content_until_the_next_is_asked_for(depth: int) -> None:
    def load(item: int, room: memoryview) -> memoryview:
        room[:] = bytes([item]) * len(room)
        return room

    seen: set[int] = set()
    for item, room in enumerate(Rooms(100, depth).read_ahead(range(50), load)):
        assert bytes(room) == bytes([item]) * 100
        seen.add(id(room.obj))
    assert len(seen) == depth + 1


def test_rooms_serve_one_run_after_another_and_are_zero_at_first() -> None:
    rooms = Rooms(10, 2)

    def load(item: int, room: memoryview) -> bytes:
        before, room[0] = bytes(room), item
        return before

    assert list(rooms.read_ahead([7, 7, 7], load)) == [bytes(10)] * 3
    assert list(rooms.read_ahead([8], load)) == [bytes([7, *bytes(9)])]


@given(
    size=st.sampled_from([1, 4096, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 2 * PIECE_BYTES + 77]),
    cuts=st.lists(st.floats(0, 1), max_size=6),
    value=st.integers(0, 255),
)
def test_one_pass_finds_what_three_find(size: int, cuts: list[float], value: int) -> None:
    blob = (bytes([value, 1, 2]) * (size // 3 + 1))[:size]
    places = sorted({0, size, *(int(cut * size) for cut in cuts)})
    parts = [
        TensorInfo(f"part {start}", "U8", (end - start,), "file", start, end - start) for start, end in pairwise(places)
    ][::2]  # what lies between is padding
    found = identify(memoryview(blob), parts)
    assert found.digest == blake3.blake3(blob).hexdigest()
    assert found.checks == piece_checks(blob)
    assert found.tensors == {
        part.name: blake3.blake3(blob[part.offset : part.offset + part.num_bytes]).hexdigest() for part in parts
    }
