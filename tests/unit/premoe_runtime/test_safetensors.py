"""One codec reads and writes every safetensors header, and whatever is wrong with one is a single CorruptData line."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load

from premoe_runtime.engines.hf.skeleton import read_tensors
from premoe_runtime.formats import arrays, safetensors
from premoe_runtime.formats.errors import CorruptData
from premoe_runtime.packs.checks import read_checks

READERS: dict[str, Callable[[bytes], object]] = {
    "arrays": lambda data: arrays.decode(data, where="a file"),
    "checks": lambda data: read_checks(data, (1, 1, 1), "a file"),
    "skeleton": lambda data: list(read_tensors(data, "a file")),
}


def file(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def one(*, dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4), name: str = "x") -> bytes:
    return file({name: {"dtype": dtype, "shape": shape, "data_offsets": offsets}}, bytes(4))


HOSTILE = {
    "nothing": b"",
    "only a length": struct.pack("<Q", 2**64 - 1),
    "200,000 brackets": file(b"[" * 200_000),
    "200,000 objects": file(b'{"a":' * 200_000),
    "a number of 10,000 digits": file(b'{"x":' + b"9" * 10_000 + b"}"),
    "no UTF-8": file(b"\xff\xfe"),
    "unknown dtype": one(dtype="F4"),
    "dtype of another type": one(dtype=["F32"]),
    "negative shape": one(shape=(-1,)),
    "two negatives": one(shape=(-1, -1)),
    "offsets beyond 63 bits": one(offsets=(2**63, 2**63 + 4)),
    "offsets beyond 64 bits": one(offsets=(2**64, 2**64 + 4)),
    "offsets past the end": one(offsets=(4, 8)),
    "empty, with overflowing strides": one(shape=(0, 2**62, 2**62), offsets=(0, 0)),
    "more dimensions than any library takes": one(shape=(1,) * 100),
    "not a number": one(shape=(float("nan"),)),
    "a name of a megabyte": one(shape=(2,), name="x" * (1 << 20)),
    "line breaks in a name": one(shape=(2,), name="x\ny"),
    "line breaks in a dtype": one(dtype="F\n4"),
    "twice the same name": file(b'{"a": 1, "a": 2}'),
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_headers_are_one_line_for_every_reader(reader: Callable[[bytes], object], data: bytes) -> None:
    with pytest.raises(CorruptData, match="a file: ") as error:
        reader(data)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


@given(st.dictionaries(st.text(min_size=1), st.tuples(st.sampled_from(["F32", "I16"]), st.integers(0, 5)), max_size=8))
def test_what_is_written_is_read_by_us_and_by_the_library(described: dict[str, tuple[str, int]]) -> None:
    described.pop("__metadata__", None)
    tensors = [(name, dtype, (size, 3)) for name, (dtype, size) in described.items()]
    header = safetensors.encode_header(tensors, {"kind": "ünï"}, alignment=64)
    assert len(header) % 64 == 0
    total = sum(safetensors.tensor_bytes(dtype, shape) for _, dtype, shape in tensors)
    data = header + np.arange(total).astype(np.uint8).tobytes()
    found = safetensors.parse_file(data, where="x")
    assert [(one.name, one.dtype, one.shape) for one in found.tensors] == tensors
    assert found.metadata == {"kind": "ünï"}
    for name, array in load(data).items():
        tensor = next(one for one in found.tensors if one.name == name)
        assert array.tobytes() == data[tensor.offset : tensor.offset + tensor.num_bytes]


@given(st.data())
def test_no_change_of_a_header_escapes_as_another_error(data: st.DataObject) -> None:
    whole = bytearray(arrays.encode({"x": np.ones((2, 3), np.float32), "y": np.ones(2, np.int64)}, {"a": "b"}))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    for reader in READERS.values():
        with suppress(CorruptData):
            reader(bytes(whole))
