"""What a pack looks like: the format of DESIGN section 5, identity, idempotence, memory."""

from __future__ import annotations

import json
import shutil
import tempfile
import tracemalloc
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from support.checkpoints import CONFIGS, Array, checkpoint, config, tensors, write

from premoe_runtime.formats.errors import Conflict, Exhausted
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.packs.checkpoint import read_header
from premoe_runtime.packs.progress import Silent
from premoe_runtime.packs.reader import PackReader
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.staging import Staging
from premoe_runtime.packs.verify import verify_pack
from premoe_runtime.packs.writer import PackResult, write_pack
from premoe_runtime.storage import LocalStore, Store, open_store

NUMPY = {"F16": "float16", "F32": "float32", "BF16": "uint16"}


def pack(folder: Path, to: Store | Path) -> PackResult:
    store = to if isinstance(to, Store) else LocalStore(to)
    return write_pack(open_source(str(folder)), store)


def expert_arrays(manifest: Manifest, blob: bytes) -> dict[str, Array]:
    return {
        field.name: np.frombuffer(blob, NUMPY[field.dtype], field.num_bytes // np.dtype(NUMPY[field.dtype]).itemsize,
                                  field.offset).reshape(field.shape)
        for field in manifest.layout.fields
    }  # fmt: skip


def check_pack(store: Store, manifest: Manifest, data: dict[str, Array], prefix: str) -> None:
    """Every tensor of the checkpoint is in the pack, bit for bit, at an aligned place; padding is zero."""
    found: dict[str, Array] = {}
    for layer, described in enumerate(manifest.layers):
        path = f"{prefix}/{described.file}"
        header = read_header(store, path, store.head(path).size)
        assert [tensor.name for tensor in header] == [f"expert.{expert:05d}" for expert in range(manifest.num_experts)]
        for expert, tensor in enumerate(header):
            assert tensor.offset % 4096 == 0
            assert tensor.offset == described.data_offset + expert * described.stride
            assert (tensor.dtype, tensor.shape) == ("U8", (manifest.layout.blob_bytes,))
            blob = store.get_range(path, tensor.offset, tensor.num_bytes)
            covered = bytearray(blob)
            arrays = expert_arrays(manifest, blob)
            for field in manifest.layout.fields:
                covered[field.offset : field.offset + field.num_bytes] = bytes(field.num_bytes)
            assert not any(covered), "padding is not zero"
            inner = manifest.layout.fields[0].shape[0] // 2
            names = _names(manifest.family, described.block, expert)
            for name, array in zip(
                names, (arrays["gate_up"][:inner], arrays["gate_up"][inner:], arrays["down"]), strict=True
            ):
                found[name] = array
        assert layer == manifest.layers.index(described)
    for file in manifest.skeleton:
        if file.path.endswith(".safetensors"):
            for tensor in read_header(store, f"{prefix}/{file.path}", file.num_bytes):
                raw = store.get_range(f"{prefix}/{file.path}", tensor.offset, tensor.num_bytes)
                found[tensor.name] = np.frombuffer(raw, NUMPY[tensor.dtype]).reshape(tensor.shape)
    assert found.keys() == data.keys()
    for name, array in data.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name].view("uint8"), np.ascontiguousarray(array).view("uint8"))


def _names(family: str, block: int, expert: int) -> list[str]:
    if family == "mixtral":
        prefix, names = f"model.layers.{block}.block_sparse_moe.experts.{expert}", ("w1", "w3", "w2")
    else:
        prefix, names = f"model.layers.{block}.mlp.experts.{expert}", ("gate_proj", "up_proj", "down_proj")
    return [f"{prefix}.{name}.weight" for name in names]


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "olmoe"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "uint16"])
def test_packs_hold_the_checkpoint(tmp_path: Path, family: str, dtype: str) -> None:
    overrides: dict[str, Any] = {"mlp_only_layers": [1]} if family == "qwen3_moe" else {}
    values = config(family, **overrides)
    data = tensors(values, dtype=dtype)
    result = pack(write(tmp_path / "model", values, data, shards=2), tmp_path / "store")
    manifest = result.manifest
    assert [layer.block for layer in manifest.layers] == ([0, 2] if overrides else [0, 1, 2])
    check_pack(LocalStore(tmp_path / "store"), manifest, data, f"models/{manifest.model_id}")


@settings(max_examples=25, deadline=None)
@given(
    family=st.sampled_from(sorted(CONFIGS)),
    hidden=st.integers(1, 40),
    inner=st.integers(1, 70),
    layers=st.integers(1, 3),
    experts=st.integers(1, 9),
    shards=st.integers(1, 4),
    interleave=st.booleans(),
    dtype=st.sampled_from(["float16", "float32", "uint16"]),
    seed=st.integers(0, 1000),
)
def test_any_small_checkpoint_survives_packing(
    family: str,
    hidden: int,
    inner: int,
    layers: int,
    experts: int,
    shards: int,
    interleave: bool,
    dtype: str,
    seed: int,
) -> None:
    values = config(
        family,
        hidden_size=hidden,
        intermediate_size=inner,
        moe_intermediate_size=inner,
        num_hidden_layers=layers,
        num_experts=experts,
        num_local_experts=None,
        num_experts_per_tok=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=None if family == "olmoe" else 4,
        vocab_size=5,
    )
    data = tensors(values, seed=seed, dtype=dtype)
    store = open_store(f"memory://{uuid.uuid4().hex}")
    with tempfile.TemporaryDirectory() as name:
        folder = write(Path(name), values, data, shards=shards, interleave=interleave)
        result = pack(folder, store)
    prefix = f"models/{result.manifest.model_id}"
    check_pack(store, result.manifest, data, prefix)
    assert verify_pack(PackReader(store, prefix)).faults == ()


def test_the_safetensors_library_reads_every_file(tmp_path: Path) -> None:
    values = config()
    data = tensors(values)
    result = pack(write(tmp_path / "model", values, data), tmp_path / "store")
    manifest, root = result.manifest, tmp_path / "store" / "models" / result.manifest.model_id
    for layer in range(3):
        blobs = load_file(root / f"experts/layer-{layer:03d}.safetensors")
        assert list(blobs) == [f"expert.{expert:05d}" for expert in range(6)]
        for expert in range(6):
            blob = blobs[f"expert.{expert:05d}"].tobytes()
            down = data[f"model.layers.{layer}.mlp.experts.{expert}.down_proj.weight"]
            assert np.array_equal(expert_arrays(manifest, blob)["down"], down)
    skeleton = load_file(root / "skeleton/model-00001-of-00001.safetensors")
    assert skeleton.keys() == {name for name in data if ".experts." not in name}
    checks = load_file(root / "checks.safetensors")["crc32c"]
    assert (checks.dtype, checks.shape) == (np.dtype("uint32"), (3, 6, 1))
    blob = load_file(root / "experts/layer-001.safetensors")["expert.00004"].tobytes()
    assert checks[1, 4, 0] == crc32c(blob)


def test_piece_checks_restart_in_every_blob(tmp_path: Path) -> None:
    values = config(hidden_size=256, moe_intermediate_size=1024, num_experts=2, num_hidden_layers=1)
    result = pack(write(tmp_path / "model", values, tensors(values, dtype="float32")), tmp_path / "store")
    root = Path(tmp_path / "store" / "models" / result.manifest.model_id)
    assert result.manifest.layout.blob_bytes == 3 * 1024 * 256 * 4
    checks = load_file(root / "checks.safetensors")["crc32c"]
    assert checks.shape == (1, 2, 4)
    for expert in range(2):
        blob = load_file(root / "experts/layer-000.safetensors")[f"expert.{expert:05d}"].tobytes()
        pieces = [blob[start : start + 1_048_512] for start in range(0, len(blob), 1_048_512)]
        assert checks[0, expert].tolist() == [crc32c(piece) for piece in pieces]


def test_files_of_a_pack(tmp_path: Path) -> None:
    result = pack(checkpoint(tmp_path / "model", shards=3), tmp_path / "store")
    root = f"models/{result.manifest.model_id}"
    assert [info.path.removeprefix(f"{root}/") for info in LocalStore(tmp_path / "store").list("models")] == [
        "checks.safetensors",
        "experts/layer-000.safetensors",
        "experts/layer-001.safetensors",
        "experts/layer-002.safetensors",
        "manifest.json",
        "skeleton/chat_template.jinja",
        "skeleton/config.json",
        "skeleton/generation_config.json",
        "skeleton/model-00001-of-00001.safetensors",
        "skeleton/tokenizer.json",
        "skeleton/tokenizer_config.json",
    ]
    manifest = result.manifest
    assert manifest.model_id == manifest.content_id()
    assert manifest.origin.url == "model"
    assert str(tmp_path) not in (tmp_path / "store" / root / "manifest.json").read_text()
    assert (manifest.family, manifest.top_k, manifest.num_experts, manifest.hidden_size) == ("qwen3_moe", 2, 6, 32)
    assert result.url == (tmp_path / "store" / root).as_uri()
    assert result.bytes_written == sum(
        info.size for info in LocalStore(tmp_path / "store").list(root) if not info.path.endswith("manifest.json")
    )
    assert not (tmp_path / "store" / "staging").exists()


def test_identity_is_free_of_sharding_layout_and_place(tmp_path: Path) -> None:
    values = config()
    data = tensors(values)
    results = [
        pack(write(tmp_path / f"model-{index}", values, data, shards=shards, interleave=interleave), tmp_path / to)
        for index, (shards, interleave, to) in enumerate([(1, True, "a"), (3, True, "a"), (3, False, "b")])
    ]
    assert len({result.manifest.weights_id for result in results}) == 1
    assert len({result.manifest.model_id for result in results}) == 1
    assert len(list((tmp_path / "a" / "models").iterdir())) == 1
    roots = [tmp_path / to / "models" / results[0].manifest.model_id for to in ("a", "b")]
    for path in ("checks.safetensors", "experts/layer-002.safetensors", "skeleton/model-00001-of-00001.safetensors"):
        assert (roots[0] / path).read_bytes() == (roots[1] / path).read_bytes()


def test_other_weights_are_another_model_and_another_tokenizer_another_pack(tmp_path: Path) -> None:
    base = pack(checkpoint(tmp_path / "one"), tmp_path / "store").manifest
    values = config()
    data = tensors(values)
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    data[name] = data[name].copy()
    data[name][0, 0] += 1
    other = pack(write(tmp_path / "two", values, data), tmp_path / "store").manifest
    assert other.weights_id != base.weights_id
    assert other.model_id != base.model_id
    folder = checkpoint(tmp_path / "three")
    (folder / "tokenizer.json").write_text('{"version": "2.0"}')
    retold = pack(folder, tmp_path / "store").manifest
    assert retold.weights_id == base.weights_id
    assert retold.model_id != base.model_id
    assert len(list((tmp_path / "store" / "models").iterdir())) == 3


def test_packing_again_reads_nothing_and_says_so(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", shards=2)
    first = pack(folder, tmp_path / "store")
    again = pack(folder, tmp_path / "store")
    assert not first.already_packed
    assert again.already_packed
    assert (again.bytes_read, again.bytes_written) == (0, 0)
    assert again.manifest == first.manifest


def test_a_changed_source_is_packed_anew(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", seed=0)
    first = pack(folder, tmp_path / "store")
    shutil.rmtree(folder)
    second = pack(checkpoint(folder, seed=1), tmp_path / "store")
    assert not second.already_packed
    assert second.manifest.weights_id != first.manifest.weights_id


@pytest.mark.parametrize("damage", ["manifest.json", "experts/layer-001.safetensors", "skeleton/config.json"])
def test_a_damaged_pack_is_packed_again(tmp_path: Path, damage: str) -> None:
    folder = checkpoint(tmp_path / "model")
    first = pack(folder, tmp_path / "store")
    root = tmp_path / "store" / "models" / first.manifest.model_id
    (root / damage).write_bytes(b"short")
    again = pack(folder, tmp_path / "store")
    assert not again.already_packed
    assert again.manifest.model_id == first.manifest.model_id
    store = LocalStore(tmp_path / "store")
    assert verify_pack(PackReader(store, f"models/{first.manifest.model_id}")).faults == ()
    assert not (tmp_path / "store" / "staging").exists()


def test_a_second_packer_of_the_same_source_is_kept_out(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    store = LocalStore(tmp_path / "store")
    with Staging(store, open_source(str(folder)).key).locked():
        with pytest.raises(Conflict, match="another process is packing") as error:
            pack(folder, store)
    assert error.value.reason == "PACK_RUNNING"
    assert pack(folder, store).manifest.family == "qwen3_moe"


def test_too_little_room_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalStore, "free_bytes", lambda self: 1000)
    with pytest.raises(Exhausted, match=r"\d+ bytes needed, 1000 free") as error:
        pack(checkpoint(tmp_path / "model"), tmp_path / "store")
    assert error.value.reason == "DISK_FULL"
    assert LocalStore(tmp_path / "store").list() == []


def test_progress_ends_at_its_total(tmp_path: Path) -> None:
    class Meter(Silent):
        def __init__(self) -> None:
            self.whole = self.done = 0
            self.stages: list[str] = []

        def total(self, num_bytes: int) -> None:
            self.whole = num_bytes

        def stage(self, what: str) -> None:
            self.stages.append(what)

        def advance(self, num_bytes: int) -> None:
            self.done += num_bytes

    meter = Meter()
    write_pack(open_source(str(checkpoint(tmp_path / "model"))), LocalStore(tmp_path / "store"), meter)
    assert meter.whole == meter.done > 0
    assert meter.stages == [
        "skeleton/model-00001-of-00001.safetensors",
        *(f"experts/layer-{layer:03d}.safetensors" for layer in range(3)),
    ]


@pytest.mark.slow
def test_memory_stays_far_below_a_layer(tmp_path: Path) -> None:
    """48 MiB of experts in one shard, blobs of 768 KiB: the peak is a few blobs."""
    values = config(hidden_size=128, moe_intermediate_size=1024, num_experts=32, num_hidden_layers=2)
    folder = write(tmp_path / "model", values, tensors(values))
    tracemalloc.start()
    try:
        pack(folder, tmp_path / "store")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (folder / "model.safetensors").stat().st_size > 48 << 20
    assert peak < 12 << 20


def test_multi_token_prediction_layers_are_reported(tmp_path: Path) -> None:
    values = config(num_nextn_predict_layers=1)
    data = {**tensors(values), "mtp.fc.weight": np.zeros((2, 2), dtype=np.float16)}
    assert pack(write(tmp_path / "model", values, data), tmp_path / "store").dropped == (
        ("mtp.fc.weight", "multi-token prediction"),
    )


def test_the_manifest_round_trips(tmp_path: Path) -> None:
    result = pack(checkpoint(tmp_path / "model"), tmp_path / "store")
    data = (tmp_path / "store" / "models" / result.manifest.model_id / "manifest.json").read_bytes()
    assert Manifest.parse(data) == result.manifest
    assert json.loads(data)["router"]["score"] == "softmax"


@pytest.mark.parametrize("key", ["digests", "checks", "tensors"])
@pytest.mark.parametrize("file", ["experts/layer-000.safetensors", "skeleton/model-00001-of-00001.safetensors"])
def test_a_record_of_another_layer_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, key: str
) -> None:
    folder, store = checkpoint(tmp_path / "model"), LocalStore(tmp_path / "store")
    whole = pack(folder, tmp_path / "other").manifest
    monkeypatch.setattr(Staging, "publish", lambda self, manifest: None)  # a run that ends just before
    pack(folder, store)
    monkeypatch.undo()
    (place,) = (tmp_path / "store").glob(f"staging/*/records/{file}.json")
    record = json.loads(place.read_text())
    if key not in record:
        return  # a shard has neither blobs nor checks
    record[key] = {} if key == "tensors" else record[key][:-1]
    place.write_text(json.dumps(record))
    assert pack(folder, store).manifest == whole
    assert verify_pack(PackReader(store, f"models/{whole.model_id}")).faults == ()
