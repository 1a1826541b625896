"""Pure layout: blobs, headers, skeleton shards, identity of weights; and the coalescing of reads."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checkpoints import config

from premoe_runtime.families.registry import read_model
from premoe_runtime.formats.safetensors import parse_header
from premoe_runtime.packs import layout as lay
from premoe_runtime.packs.contents import TensorInfo
from premoe_runtime.packs.ranges import Read, coalesce, read_ahead

SHAPES = st.lists(st.integers(0, 9), max_size=3).map(tuple)


def tensor(name: str, num_bytes: int, dtype: str = "F16", file: str = "a", offset: int = 0) -> TensorInfo:
    return TensorInfo(name, dtype, (num_bytes,), file, offset, num_bytes)


@pytest.mark.parametrize(
    ("family", "dtype", "gate_up", "down", "offset", "blob"),
    [
        ("qwen3_moe", "BF16", (48, 32), (32, 24), 3072, 8192),
        ("qwen3_moe", "F32", (48, 32), (32, 24), 6144, 12288),
        ("mixtral", "F16", (80, 32), (32, 40), 5120, 8192),
        ("olmoe", "F32", (80, 32), (32, 40), 10240, 16384),
    ],
)
def test_blob_layouts(
    family: str, dtype: str, gate_up: tuple[int, int], down: tuple[int, int], offset: int, blob: int
) -> None:
    layout = lay.blob_layout(read_model(json.dumps(config(family)).encode()), dtype)
    assert [(field.name, field.dtype, field.shape, field.offset) for field in layout.fields] == [
        ("gate_up", dtype, gate_up, 0),
        ("down", dtype, down, offset),
    ]
    assert layout.blob_bytes == blob


@settings(deadline=None)  # the first example imports torch
@given(hidden=st.integers(1, 300), inner=st.integers(1, 300), dtype=st.sampled_from(["F32", "F16", "BF16"]))
def test_fields_are_aligned_and_tensors_tile_them(hidden: int, inner: int, dtype: str) -> None:
    values = config("mixtral", hidden_size=hidden, intermediate_size=inner, head_dim=4)
    model = read_model(json.dumps(values).encode())
    layout = lay.blob_layout(model, dtype)
    assert layout.blob_bytes % 4096 == 0
    assert all(field.offset % 256 == 0 for field in layout.fields)
    covered = [byte for field in layout.fields for byte in (field.offset, field.offset + field.num_bytes)]
    assert covered == sorted(covered)
    assert layout.blob_bytes - covered[-1] < 4096
    parts = lay.expert_parts(model, layout, 0, 0)
    assert [part.name for part in parts] == [model.expert_name(0, 0, one) for one in model.expert_tensors]
    gate, up, down = ((part.offset, part.num_bytes) for part in parts)
    assert gate[0] == layout.fields[0].offset
    assert gate[0] + gate[1] == up[0]
    assert up[0] + up[1] == layout.fields[0].offset + layout.fields[0].num_bytes
    assert down == (layout.fields[1].offset, layout.fields[1].num_bytes)


@given(experts=st.integers(1, 300), blobs=st.integers(1, 5))
def test_expert_headers_are_valid_and_aligned(experts: int, blobs: int) -> None:
    header = lay.expert_file_header(experts, blobs * 4096)
    assert len(header) % 4096 == 0
    found = parse_header(header[8:], len(header) + experts * blobs * 4096, where="x").tensors
    assert [tensor.name for tensor in found] == [f"expert.{expert:05d}" for expert in range(experts)]
    assert [tensor.offset for tensor in found] == [len(header) + expert * blobs * 4096 for expert in range(experts)]


@given(
    sizes=st.dictionaries(st.text("abcd", min_size=1, max_size=4), st.integers(0, 60), min_size=1, max_size=30),
    limit=st.integers(1, 100),
    order=st.randoms(),
)
def test_skeleton_shards_depend_on_the_tensors_only(sizes: dict[str, int], limit: int, order: object) -> None:
    tensors = [tensor(name, size) for name, size in sizes.items()]
    shards = lay.skeleton_shards(tensors, limit)
    shuffled = [tensor(name, size, file="b", offset=7) for name, size in sorted(sizes.items(), reverse=True)]
    assert [[one.name for one in shard] for shard in lay.skeleton_shards(shuffled, limit)] == [
        [one.name for one in shard] for shard in shards
    ]
    assert sorted(one.name for shard in shards for one in shard) == sorted(sizes)
    for shard in shards:
        assert shard
        assert len(shard) == 1 or sum(one.num_bytes for one in shard) <= limit


def test_wider_dtypes_come_first_in_a_shard() -> None:
    (shard,) = lay.skeleton_shards([tensor("a", 2), tensor("b", 4, "F32"), tensor("c", 6), tensor("d", 8, "F32")])
    assert [one.name for one in shard] == ["b", "d", "a", "c"]


def test_weights_id_sees_names_dtypes_shapes_and_content_and_nothing_else() -> None:
    base = {"a": tensor("a", 4), "b": tensor("b", 4)}
    digests = {"a": "11", "b": "22"}
    same = lay.weights_id(base, digests)
    assert lay.weights_id({"b": tensor("b", 4, file="z", offset=99), "a": base["a"]}, {"b": "22", "a": "11"}) == same
    others = [
        lay.weights_id(base, {"a": "11", "b": "23"}),
        lay.weights_id(base, {"a": "22", "b": "11"}),
        lay.weights_id({**base, "b": tensor("b", 4, "BF16")}, digests),
        lay.weights_id({**base, "b": TensorInfo("b", "F16", (2, 2), "a", 0, 4)}, digests),
        lay.weights_id({"a": base["a"], "c": tensor("c", 4)}, {"a": "11", "c": "22"}),
        lay.weights_id(base, {"a": "11"}),
    ]
    assert len({same, *others}) == 7


@given(
    lengths=st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 40), st.integers(0, 25)), max_size=25),
    limit=st.integers(1, 40),
)
def test_coalesced_reads_fill_every_byte_and_keep_the_limit(lengths: list[tuple[str, int, int]], limit: int) -> None:
    files = {name: bytes((index * 7 + ord(name)) % 251 for index in range(4000)) for name in "ab"}
    ends = {"a": 0, "b": 0}
    reads, rooms = [], []
    for name, gap, length in lengths:
        room = bytearray(length)
        reads.append(Read(name, ends[name] + gap, memoryview(room)))
        rooms.append((name, ends[name] + gap, room))
        ends[name] += gap + length
    runs = coalesce(reads[::-1], limit)
    for run in runs:
        size = sum(view.nbytes for view in run.views)
        assert 0 < size <= limit
        at = run.offset
        for view in run.views:
            view[:] = files[run.file][at : at + view.nbytes]
            at += view.nbytes
    for name, offset, room in rooms:
        assert bytes(room) == files[name][offset : offset + len(room)]


def test_neighbours_share_one_request() -> None:
    reads = [Read("a", offset, memoryview(bytearray(10))) for offset in (20, 0, 10, 31)]
    assert [(run.offset, len(run.views)) for run in coalesce(reads, 100)] == [(0, 3), (31, 1)]
    assert [(run.offset, len(run.views)) for run in coalesce(reads, 20)] == [(0, 2), (20, 1), (31, 1)]


@pytest.mark.parametrize("depth", [0, 1, 3, 50])
def test_read_ahead_keeps_the_order(depth: int) -> None:
    assert list(read_ahead(range(20), lambda item: item * item, depth)) == [item * item for item in range(20)]


@pytest.mark.parametrize("depth", [0, 3])
def test_read_ahead_hands_on_the_error_of_a_load(depth: int) -> None:
    results = read_ahead([1, 2, 0, 4, 5], lambda item: 10 // item, depth)
    assert [next(results), next(results)] == [10, 5]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_read_ahead_never_holds_more_than_its_depth() -> None:
    loaded: list[int] = []

    def load(item: int) -> int:
        loaded.append(item)
        return item

    for item in read_ahead(range(30), load, 4):
        assert len(loaded) <= item + 1 + 4
