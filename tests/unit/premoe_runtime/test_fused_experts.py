"""Experts stored fused, as transformers writes them on demand: the same blobs and identities as one by one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.checkpoints import CONFIGS, Array, config, fused, tensors, write

from premoe_runtime.families import registry
from premoe_runtime.families.registry import FAMILIES
from premoe_runtime.families.spec import ExpertField
from premoe_runtime.formats.errors import CorruptData, InvalidInput, PremoeError
from premoe_runtime.formats.manifest import BlobField, Manifest
from premoe_runtime.packs.layout import straighten
from premoe_runtime.packs.reader import PackReader
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.verify import verify_pack
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.storage import LocalStore, open_store

each_family = pytest.mark.parametrize("family", sorted(CONFIGS))
DOWN = "model.layers.1.mlp.experts.down_proj"


def packed(folder: Path, values: dict[str, object], data: dict[str, Array], shards: int = 1) -> Manifest:
    source = open_source(str(write(folder, values, data, shards=shards)))
    return write_pack(source, LocalStore(folder.parent / "store")).manifest


@each_family
def test_fused_experts_give_the_same_pack(tmp_path: Path, family: str) -> None:
    values = config(family)
    data = tensors(values)
    alone = packed(tmp_path / "alone", values, data)
    for name, layers, shards in (("fused", (0, 1, 2), 1), ("sharded", (0, 1, 2), 3), ("mixed", (1,), 2)):
        again = packed(tmp_path / name, values, fused(values, data, layers), shards)
        assert again.weights_id == alone.weights_id
        assert again.model_id == alone.model_id
    store = LocalStore(tmp_path / "store")
    assert verify_pack(PackReader(store, f"models/{alone.model_id}")).faults == ()


def test_a_family_may_fuse_experts_transposed_and_interleaved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Square experts of Qwen3-MoE, declared and stored so that columns are rows and gate and up take turns."""
    values = config(moe_intermediate_size=32)
    data = tensors(values)
    alone = packed(tmp_path / "alone", values, data)
    spec = FAMILIES["qwen3_moe"]
    turned = fused(values, data)
    for name in [name for name in turned if ".experts." in name]:
        if name.endswith("gate_up_proj"):
            turned[name] = np.stack([turned[name][:, :32], turned[name][:, 32:]], axis=2).reshape(turned[name].shape)
        else:
            turned[name] = np.ascontiguousarray(turned[name].swapaxes(1, 2))
    gate_up, down = spec.fields
    fields = (replace(gate_up, interleaved=True), replace(down, transposed=True))
    monkeypatch.setattr(registry, "FAMILIES", {"qwen3_moe": replace(spec, fields=fields)})
    again = packed(tmp_path / "turned", values, turned)
    assert (again.weights_id, again.model_id) == (alone.weights_id, alone.model_id)


def test_every_field_may_have_a_dtype_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = config()
    data = tensors(values)
    for name in [name for name in data if name.endswith("down_proj.weight")]:
        data[name] = data[name].astype("float32")
    spec = FAMILIES["qwen3_moe"]
    gate_up, down = spec.fields
    fields = (gate_up, replace(down, dtypes=("F32",)))
    monkeypatch.setattr(registry, "FAMILIES", {"qwen3_moe": replace(spec, fields=fields)})
    alone = packed(tmp_path / "alone", values, data)
    assert [(field.name, field.dtype, field.offset) for field in alone.layout.fields] == [
        ("gate_up", "F16", 0),
        ("down", "F32", 3072),
    ]
    assert packed(tmp_path / "fused", values, fused(values, data)).model_id == alone.model_id
    store = LocalStore(tmp_path / "store")
    assert verify_pack(PackReader(store, f"models/{alone.model_id}")).faults == ()
    with pytest.raises(InvalidInput, match=r"down_proj.weight has dtype F16; supported: F32"):
        packed(tmp_path / "narrow", values, tensors(values))


@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 7),
    parts=st.integers(1, 3),
    dtype=st.sampled_from(["<u1", "<f2", "<f4"]),
    transposed=st.booleans(),
    interleaved=st.booleans(),
)
def test_fused_pieces_are_straightened(
    rows: int, columns: int, parts: int, dtype: str, transposed: bool, interleaved: bool
) -> None:
    pieces = np.arange(parts * rows * columns).astype(dtype).reshape(parts, rows, columns)
    whole = (pieces.swapaxes(0, 1) if interleaved else pieces).reshape(parts * rows, columns)
    stored = whole.T if transposed else whole
    names = tuple(f"part{index}" for index in range(parts))
    spec = ExpertField("field", fused="fused", parts=names, transposed=transposed, interleaved=interleaved)
    named = {"<u1": "U8", "<f2": "F16", "<f4": "F32"}[dtype]
    field = BlobField(name="field", dtype=named, shape=(parts * rows, columns), offset=0)
    assert straighten(spec, field, np.ascontiguousarray(stored).tobytes()) == pieces.tobytes()


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda data: data.pop(DOWN), CorruptData, r"tensor .*1.mlp.experts.0.down_proj.weight is missing"),
        (
            lambda data: data.update({DOWN: data[DOWN][:5]}),
            CorruptData,
            r"has shape \[5, 32, 24\].* says \[6, 32, 24\]",
        ),
        (
            lambda data: data.update({DOWN: data[DOWN].swapaxes(1, 2)}),
            CorruptData,
            r"has shape \[6, 24, 32\], config.json says \[6, 32, 24\]",
        ),
        (lambda data: data.update({DOWN: data[DOWN].astype("float32")}), InvalidInput, "routed experts of two dtypes"),
        (
            lambda data: data.update({DOWN.replace("experts.", "experts.3.") + ".weight": data[DOWN][3]}),
            CorruptData,
            "experts.3.down_proj.weight is there beside the fused one",
        ),
    ],
)
def test_wrong_fused_experts_are_refused(tmp_path: Path, change: object, kind: type[PremoeError], message: str) -> None:
    values = config()
    data = fused(values, tensors(values))
    assert callable(change)
    change(data)
    with pytest.raises(kind, match=message) as error:
        packed(tmp_path / "model", values, data)
    assert "\n" not in str(error.value)


def test_a_skeleton_tensor_under_both_of_its_names_is_refused(tmp_path: Path) -> None:
    values = config("mixtral")
    data = tensors(values)
    gate = "model.layers.0.block_sparse_moe.gate.weight"
    data["model.layers.0.mlp.gate.weight"] = data[gate]
    with pytest.raises(CorruptData, match=f"tensor {gate} is in"):
        packed(tmp_path / "model", values, data)


def test_a_fused_checkpoint_behind_ranged_reads(tmp_path: Path) -> None:
    values = config("qwen2_moe")
    data = tensors(values)
    folder = write(tmp_path / "model", values, fused(values, data))
    memory = open_store("memory://fused-source/model")
    for path in folder.iterdir():
        memory.put(path.name, path.read_bytes())
    found = write_pack(open_source("memory://fused-source/model"), LocalStore(tmp_path / "store"))
    assert found.manifest.weights_id == packed(tmp_path / "alone", values, data).weights_id
    assert found.bytes_read < 2 * (folder / "model.safetensors").stat().st_size
