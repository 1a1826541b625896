"""Strict checks of checkpoints: each way a shard, an index or a config can be wrong is refused in one line."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkpoints import CONFIGS, checkpoint, config, save, tensors, write

from premoe_runtime.formats.errors import CorruptData, InvalidInput, NotFound, PremoeError
from premoe_runtime.formats.safetensors import MAX_HEADER_BYTES
from premoe_runtime.packs.checkpoint import (
    INDEX_FILE,
    SINGLE_FILE,
    Checkpoint,
    open_checkpoint,
    read_header,
)
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.storage import LocalStore

FIRST = "model.layers.0.mlp.experts.0.gate_proj.weight"


def open_folder(folder: Path) -> Checkpoint:
    store = LocalStore(folder)
    return open_checkpoint(store, store.list())


def refused(folder: Path, kind: type[PremoeError], message: str, reason: str) -> None:
    with pytest.raises(kind, match=message) as error:
        open_folder(folder)
    assert error.value.reason == reason
    assert "\n" not in str(error.value)


def safetensors_file(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


@pytest.mark.parametrize("family", sorted(CONFIGS))
@pytest.mark.parametrize("shards", [1, 3])
def test_every_tensor_is_found_where_the_library_wrote_it(tmp_path: Path, family: str, shards: int) -> None:
    values = config(family)
    data = tensors(values)
    write(tmp_path, values, data, shards=shards)
    found = open_folder(tmp_path)
    assert set(found.tensors) == set(data)
    assert found.dtype == "F16"
    assert found.dropped == ()
    for name, tensor in found.tensors.items():
        raw = (tmp_path / tensor.file).read_bytes()[tensor.offset : tensor.offset + tensor.num_bytes]
        assert raw == data[name].tobytes()
        assert tensor.shape == data[name].shape
    names = {tensor.name for tensor in found.skeleton()}
    experts = {
        tensor.name
        for layer in range(3)
        for expert in range(4)
        for source in found.expert(layer, expert)
        for tensor in source.ranges
    }
    assert not names & experts
    assert all(".experts." not in name for name in names)


def test_a_tied_head_left_out_is_accepted(tmp_path: Path) -> None:
    values = config(tie_word_embeddings=True)
    data = tensors(values)
    del data["lm_head.weight"]
    assert "lm_head.weight" not in open_folder(write(tmp_path, values, data)).tensors


# --- headers ---------------------------------------------------------------------------------------------------


def entry(begin: int, end: int, *, dtype: str = "F16", shape: object = (2,)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "only 0 bytes"),
        (b"\x01\x02\x03", "only 3 bytes"),
        (struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{}", "more than the limit"),
        (struct.pack("<Q", 2**63) + b"{}", "more than the limit"),
        (struct.pack("<Q", 100) + b"{}", "the header claims 100 bytes, the file has 10"),
        (safetensors_file(b"{" + b" " * 20), "not valid JSON"),
        (safetensors_file(b"\xff\xfe\xfd"), "not valid JSON"),
        (safetensors_file(b"[" * 100_000), "not valid JSON"),
        (safetensors_file([]), "not a JSON object"),
        (safetensors_file({"__metadata__": {"a": 1}}), "__metadata__"),
        (safetensors_file({"x": 3}), "x has no description"),
        (safetensors_file({"x": entry(0, 4, dtype="F12")}, bytes(4)), "unknown dtype 'F12'"),
        (safetensors_file({"x": entry(0, 4, shape=[-2])}, bytes(4)), "impossible shape or offsets"),
        (safetensors_file({"x": entry(0, 4, shape=[2.0])}, bytes(4)), "impossible shape or offsets"),
        (safetensors_file({"x": entry(0, 4, shape=[True, 2])}, bytes(4)), "impossible shape or offsets"),
        (safetensors_file({"x": entry(0, 4, shape="2")}, bytes(4)), "impossible shape or offsets"),
        (safetensors_file({"x": entry(4, 0)}, bytes(4)), "impossible shape or offsets"),
        (safetensors_file({"x": {"dtype": "F16", "shape": [2]}}, bytes(4)), "impossible shape or offsets"),
        (safetensors_file({"x": entry(0, 6)}, bytes(6)), "spans 6 bytes, its shape and dtype need 4"),
        (safetensors_file({"x": entry(0, 4, shape=[2**40, 2**40])}, bytes(4)), "its shape and dtype need"),
        (safetensors_file({"x": entry(0, 4), "y": entry(2, 6)}, bytes(6)), "y overlaps the tensor before it"),
        (safetensors_file({"x": entry(0, 4), "y": entry(0, 4)}, bytes(4)), "overlaps the tensor before it"),
        (safetensors_file({"x": entry(0, 4), "y": entry(6, 10)}, bytes(10)), "y leaves a hole before it"),
        (safetensors_file({"x": entry(2, 6)}, bytes(6)), "x leaves a hole before it"),
        (safetensors_file({"x": entry(0, 4)}, bytes(3)), "truncated"),
        (safetensors_file({"x": entry(0, 4)}, bytes(5)), "bytes that belong to no tensor"),
        (safetensors_file(b'{"x": 1, "x": 2}'), "x occurs twice"),
    ],
)
def test_headers_that_lie_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(CorruptData, match=message) as error:
        read_header(LocalStore(tmp_path), "m.safetensors", len(content))
    assert error.value.reason == "HEADER_INVALID"
    assert "m.safetensors" in str(error.value)
    assert "\n" not in str(error.value)


def test_empty_tensors_and_scalars_are_fine(tmp_path: Path) -> None:
    content = safetensors_file({"a": entry(0, 0, shape=[0, 5]), "b": entry(0, 2, shape=[])}, bytes(2))
    (tmp_path / "m.safetensors").write_bytes(content)
    found = read_header(LocalStore(tmp_path), "m.safetensors", len(content))
    assert [(tensor.name, tensor.shape, tensor.num_bytes) for tensor in found] == [("a", (0, 5), 0), ("b", (), 2)]


def _zip_file() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"weights": list(range(100))}))
    return out.getvalue()


@pytest.mark.parametrize(
    "content",
    [_zip_file(), *(pickle.dumps({"weights": list(range(1000))}, protocol=protocol) for protocol in (2, 3, 4, 5))],
)
def test_a_pickle_that_calls_itself_safetensors_is_refused(tmp_path: Path, content: bytes) -> None:
    folder = checkpoint(tmp_path)
    (folder / SINGLE_FILE).write_bytes(content)
    refused(folder, InvalidInput, "pickle or a zip archive; pickled weights are never read", "PICKLE_REFUSED")


# --- folders and indexes ---------------------------------------------------------------------------------------


def test_a_folder_without_config(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    (folder / "config.json").unlink()
    refused(folder, NotFound, "no config.json", "CHECKPOINT_NOT_FOUND")


def test_a_folder_without_weights(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    (folder / SINGLE_FILE).unlink()
    refused(folder, NotFound, "no safetensors weights", "CHECKPOINT_NOT_FOUND")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.pkl", "model.ckpt"])
def test_pickled_weights_are_refused_by_name(tmp_path: Path, name: str) -> None:
    folder = checkpoint(tmp_path)
    (folder / SINGLE_FILE).rename(folder / name)
    refused(folder, InvalidInput, f"{name}: its weights are pickled", "PICKLE_REFUSED")


def test_pickled_weights_beside_safetensors_are_ignored(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04evil")
    assert FIRST in open_folder(folder).tensors


def test_an_index_that_names_a_pickle(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, shards=2)
    edit_index(folder, lambda index: index.update({FIRST: "pytorch_model-00001-of-00002.bin"}))
    refused(folder, InvalidInput, "pytorch_model-00001-of-00002.bin; pickled weights", "PICKLE_REFUSED")


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "weights.gguf"])
def test_an_index_that_leads_elsewhere(tmp_path: Path, name: str) -> None:
    folder = checkpoint(tmp_path, shards=2)
    edit_index(folder, lambda index: index.update({FIRST: name}))
    refused(folder, InvalidInput, "no safetensors file of this folder", "SHARD_NAME")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"x": 1}}'])
def test_a_broken_index(tmp_path: Path, text: str) -> None:
    folder = checkpoint(tmp_path, shards=2)
    (folder / INDEX_FILE).write_text(text)
    refused(folder, CorruptData, INDEX_FILE, "INDEX_INVALID")


def test_a_missing_index(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, shards=2)
    (folder / INDEX_FILE).unlink()
    refused(folder, CorruptData, f"2 safetensors files but no {INDEX_FILE}", "INDEX_MISSING")


def test_a_missing_shard(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    refused(folder, CorruptData, "shard model-00002-of-00003.safetensors is missing", "SHARD_MISSING")


def test_swapped_shards(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, shards=2)
    one, two = folder / "model-00001-of-00002.safetensors", folder / "model-00002-of-00002.safetensors"
    one.rename(folder / "x")
    two.rename(one)
    (folder / "x").rename(two)
    refused(folder, CorruptData, "should be in .* but is in .*; were shards swapped", "SHARDS_SWAPPED")


def test_an_index_entry_that_is_missing(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, shards=2)
    edit_index(folder, lambda index: index.pop(FIRST))
    refused(folder, CorruptData, f"no entry for tensor {FIRST}", "INDEX_INCOMPLETE")


def test_an_index_entry_for_a_tensor_that_is_nowhere(tmp_path: Path) -> None:
    values = config()
    data = tensors(values)
    folder = write(tmp_path, values, data, shards=2)
    shard = folder / "model-00001-of-00002.safetensors"
    names = [name for name in sorted(data)[::2] if name != FIRST]
    edit_index(folder, lambda index: index.update({FIRST: shard.name}))
    save(shard, {name: data[name] for name in names})
    other = {name: data[name] for name in sorted(data)[1::2] if name != FIRST}
    save(folder / "model-00002-of-00002.safetensors", other)
    refused(folder, CorruptData, f"tensor {FIRST} is not in .* nor in any other shard", "TENSOR_MISSING")


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    values = config()
    data = tensors(values)
    folder = write(tmp_path, values, data, shards=2)
    names = sorted(data)
    save(folder / "model-00001-of-00002.safetensors", {name: data[name] for name in names[::2]})
    save(folder / "model-00002-of-00002.safetensors", {name: data[name] for name in [*names[1::2], names[0]]})
    refused(folder, CorruptData, f"tensor {names[0]} is in .*00001.* and in .*00002", "TENSOR_DUPLICATE")


@pytest.mark.parametrize("cut", [1, 100, 10_000])
def test_a_truncated_shard(tmp_path: Path, cut: int) -> None:
    folder = checkpoint(tmp_path, shards=2)
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-cut])
    refused(folder, CorruptData, r"model-00002-of-00002.safetensors: .*truncated", "HEADER_INVALID")


# --- tensors against the config --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [FIRST, "model.layers.2.mlp.experts.5.down_proj.weight", "model.norm.weight"])
def test_missing_tensors(tmp_path: Path, name: str) -> None:
    values = config()
    data = tensors(values)
    del data[name]
    refused(write(tmp_path, values, data), CorruptData, f"tensor {name} is missing", "TENSOR_MISSING")


@pytest.mark.parametrize(
    "name",
    [FIRST, "model.layers.1.mlp.gate.weight", "model.embed_tokens.weight", "model.layers.0.self_attn.q_norm.weight"],
)
def test_wrong_shapes(tmp_path: Path, name: str) -> None:
    values = config()
    data = tensors(values)
    data[name] = np.zeros((3, 5), dtype=np.float16)
    folder = write(tmp_path, values, data)
    refused(folder, CorruptData, rf"{name} has shape \[3, 5\], config.json says", "TENSOR_SHAPE")


def test_a_config_of_another_model(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    (folder / "config.json").write_text(json.dumps(config(moe_intermediate_size=48)))
    refused(folder, CorruptData, r"has shape \[32, 24\], config.json says \[32, 48\]", "TENSOR_SHAPE")


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.mlp.experts.6.gate_proj.weight",
        "model.layers.0.mlp.shared_expert.gate_proj.weight",
        "model.layers.0.mlp.experts.gate_proj",
        "model.layers.3.input_layernorm.weight",
        "vision.patch_embed.weight",
    ],
)
def test_tensors_that_the_family_does_not_know_are_refused_by_name(tmp_path: Path, name: str) -> None:
    values = config()
    data = {**tensors(values), name: np.zeros((2, 2), dtype=np.float16)}
    refused(write(tmp_path, values, data), InvalidInput, f"unexpected tensor {name}", "UNEXPECTED_TENSOR")


def test_multi_token_prediction_layers_are_left_out_by_name(tmp_path: Path) -> None:
    values = config(num_nextn_predict_layers=1)
    extra = ["model.layers.3.eh_proj.weight", "model.layers.3.mlp.experts.0.gate_proj.weight", "mtp.fc.weight"]
    data = {**tensors(values), **{name: np.zeros((2, 2), dtype=np.float16) for name in extra}}
    found = open_folder(write(tmp_path, values, data))
    assert found.dropped == tuple((name, "multi-token prediction") for name in sorted(extra))
    assert not set(extra) & set(found.tensors)


def test_stored_buffers_that_are_computed_anew_are_left_out_with_a_note(tmp_path: Path) -> None:
    values = config("mixtral")
    extra = [
        f"model.layers.{block}.self_attn.rotary_emb.{leaf}" for block in range(3) for leaf in ("cos_cached", "inv_freq")
    ]
    extra.append("model.rotary_emb.inv_freq")
    data = {**tensors(values), **{name: np.zeros(4, dtype=np.float32) for name in extra}}
    folder = write(tmp_path, values, data, shards=2)
    edit_index(folder, lambda index: [index.pop(name) for name in extra[:2]])
    assert open_folder(folder).dropped == tuple((name, "computed anew from the config") for name in sorted(extra))


def test_stale_index_entries_that_nothing_needs_are_left_out_with_a_note(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, shards=2)
    stale = {
        "vision.patch.weight": "model-00009-of-00009.safetensors",
        "lm_head.old": "model-00001-of-00002.safetensors",
        "mtp.fc.weight": "pytorch_model.bin",
    }
    edit_index(folder, lambda index: index.update(stale))
    assert open_folder(folder).dropped == tuple((name, "stale entry of the index") for name in sorted(stale))


def test_side_files_of_operating_systems_are_left_out_with_a_note(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    (folder / "additional_chat_templates").mkdir()
    side = ["._config.json", "._model.safetensors", ".DS_Store", "additional_chat_templates/._rag.jinja"]
    for name in side:
        (folder / name).write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    assert open_folder(folder).dropped == tuple((name, "side file of an operating system") for name in sorted(side))
    source = open_source(str(folder))
    assert not any("._" in path or ".DS" in path for path in source.skeleton_files)
    manifest = write_pack(source, LocalStore(tmp_path / "store")).manifest
    assert not any("._" in file.path for file in manifest.skeleton)


@pytest.mark.parametrize("experts", [1, 3, 5, 7])
def test_evenly_pruned_checkpoints_pack_whatever_the_number(tmp_path: Path, experts: int) -> None:
    assert open_folder(checkpoint(tmp_path, num_experts=experts, num_experts_per_tok=1)).model.num_experts == experts


def test_experts_of_two_dtypes(tmp_path: Path) -> None:
    values = config()
    data = tensors(values)
    data[FIRST] = data[FIRST].astype(np.float32)
    refused(write(tmp_path, values, data), InvalidInput, "routed experts of two dtypes", "DTYPE_UNSUPPORTED")


def test_a_skeleton_may_mix_dtypes(tmp_path: Path) -> None:
    values = config()
    data = tensors(values)
    data["model.norm.weight"] = data["model.norm.weight"].astype(np.float32)
    assert open_folder(write(tmp_path, values, data)).tensors["model.norm.weight"].dtype == "F32"


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    header, data = header_of(folder / SINGLE_FILE)
    header[FIRST]["dtype"] = "I16"
    (folder / SINGLE_FILE).write_bytes(safetensors_file(header, data))
    refused(folder, InvalidInput, f"{FIRST} has dtype I16", "DTYPE_UNSUPPORTED")


def test_custom_tokenizer_code_is_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["evil.Tok", None]}}))
    refused(folder, InvalidInput, r"tokenizer_config.json: auto_map \(AutoTokenizer\)", "REMOTE_CODE")


def test_sampling_defaults_that_transformers_refuses(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    (folder / "generation_config.json").write_text(json.dumps({"max_new_tokens": -1}))
    refused(folder, InvalidInput, "transformers refuses the generation config", "GENERATION_CONFIG_REFUSED")


def test_a_vocabulary_may_have_any_word(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    (folder / "vocab.json").write_text(json.dumps({"auto_map": 5}))
    assert open_folder(folder).dropped == ()


def edit_index(folder: Path, edit: Callable[[dict[str, str]], object]) -> None:
    index = json.loads((folder / INDEX_FILE).read_text())
    edit(index["weight_map"])
    (folder / INDEX_FILE).write_text(json.dumps(index))


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("content", [b"[[[[", b"[1]", b"\xff\xfe{}", b""])
def test_a_broken_tokenizer_or_generation_file_is_refused(tmp_path: Path, file: str, content: bytes) -> None:
    checkpoint(tmp_path)
    (tmp_path / file).write_bytes(content)
    refused(tmp_path, InvalidInput, rf"{file} is not (a )?JSON", "CONFIG_INVALID")
