"""A manifest is untrusted: whatever is wrong with it is one CorruptData line."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from premoe_runtime.formats.errors import CorruptData
from premoe_runtime.formats.manifest import (
    BlobField,
    BlobLayout,
    ExpertLayer,
    Manifest,
    Origin,
    PackFile,
    RouterSpec,
)


def manifest() -> Manifest:
    layout = BlobLayout(fields=(BlobField(name="gate_up", dtype="BF16", shape=(4, 8), offset=0),), blob_bytes=4096)
    digests = ("aa", "bb")
    layer = ExpertLayer(block=0, file="experts/layer-000.safetensors", data_offset=4096, stride=4096, digests=digests)
    draft = Manifest(
        model_id="",
        weights_id="cc",
        family="qwen3_moe",
        router=RouterSpec(score="softmax", renormalise=True),
        top_k=1,
        num_layers=1,
        num_experts=2,
        hidden_size=8,
        dtype="BF16",
        layout=layout,
        layers=(layer,),
        skeleton=(),
        checks=PackFile(path="checks.safetensors", num_bytes=8, digest="dd"),
        origin=Origin(url="file:///model"),
    )
    return draft.model_copy(update={"model_id": draft.content_id()})


def test_round_trip() -> None:
    assert Manifest.parse(manifest().to_json()) == manifest()


def test_the_id_of_a_pack_that_lies_somewhere_is_never_counted_otherwise() -> None:
    """A field added later must leave ids of older packs alone: give it a default, and leave that out of the dump."""
    assert manifest().model_id == "94605288c1c40cf0913cc637967061a1d52c3f1b7a658773a019e1af8e73fcc1"


def test_origin_is_no_part_of_the_id() -> None:
    moved = manifest().model_copy(update={"origin": Origin(url="s3://elsewhere", revision="main")})
    assert moved.content_id() == manifest().model_id


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_layers": 2}, "1 layers listed"),
        ({"num_experts": 3}, "list up to 2 blob digests, num_experts is 3"),
        ({"top_k": 3}, "top_k 3 exceeds the 2 experts of a layer"),
        ({"weights_id": "other"}, "model_id is not the digest"),
        ({"surprise": 1}, "surprise"),
        ({"format_version": 2}, "format_version"),
    ],
)
def test_contradictions_are_refused(change: dict[str, object], says: str) -> None:
    document = json.loads(manifest().to_json()) | change
    with pytest.raises(CorruptData, match=says):
        Manifest.parse(json.dumps(document).encode())


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ({"dtype": "F12"}, "dtype 'F12' is not one of"),
        ({"offset": 100}, "not aligned"),
        ({"shape": [4096, 8]}, "past the end of the blob"),
    ],
)
def test_layouts_that_cannot_be_are_refused(field: dict[str, object], says: str) -> None:
    document = json.loads(manifest().to_json())
    document["layout"]["fields"][0] |= field
    with pytest.raises(CorruptData, match=says):
        Manifest.parse(json.dumps(document).encode())


@pytest.mark.parametrize(
    "path", ["skeleton/../../evil.jinja", "/etc/evil", "skeleton//x", "evil.jinja", "skeleton/a\nb"]
)
def test_a_path_that_leads_out_of_its_folder_is_refused(path: str) -> None:
    document = json.loads(manifest().to_json())
    document["skeleton"] = [{"path": path, "num_bytes": 1, "digest": "aa"}]
    with pytest.raises(CorruptData, match=r"no path inside a pack|not in skeleton/|cannot be printed"):
        Manifest.parse(json.dumps(document).encode())


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_garbage_never_escapes_as_another_error(data: bytes) -> None:
    with pytest.raises(CorruptData):
        Manifest.parse(data)
