"""A manifest that contradicts its config or its skeleton is refused: by `pack verify`, and by whoever loads the pack.

Every lie is told with the id made right again, and the digests that a lie needs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blake3
import pytest
import torch
from safetensors.torch import load, save
from support import checkpoints
from support.tiny import tiny_checkpoint

from premoe_runtime.engines.hf.model import load_slot_model
from premoe_runtime.formats.errors import CorruptData, InvalidInput
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.packs.reader import PackReader
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.verify import verify_pack
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.storage import LocalStore

SHARD = "skeleton/model-00001-of-00001.safetensors"
CONFIG = "skeleton/config.json"
Lie = Callable[[Path, dict[str, Any]], None]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of a bfloat16 model with two MoE layers."""
    folder = tmp_path_factory.mktemp("consistency")
    write_pack(open_source(str(tiny_checkpoint(folder / "model", dtype=torch.bfloat16))), LocalStore(folder / "store"))
    (pack,) = (folder / "store/models").iterdir()
    return pack


def says(**fields: object) -> Lie:
    return lambda pack, document: document.update(fields)


def router(**fields: object) -> Lie:
    return lambda pack, document: document["router"].update(fields)


def blocks(pack: Path, document: dict[str, Any]) -> None:
    document["layers"][1]["block"] = 7


def one_layer(pack: Path, document: dict[str, Any]) -> None:
    document["layers"].pop()
    document["num_layers"] = 1


def swapped_fields(pack: Path, document: dict[str, Any]) -> None:
    document["layout"]["fields"].reverse()


def moved_field(pack: Path, document: dict[str, Any]) -> None:
    document["layout"]["fields"][1]["offset"] -= 256
    document["layout"]["fields"][0]["shape"][0] -= 2


def turned_field(pack: Path, document: dict[str, Any]) -> None:
    document["layout"]["fields"][1]["shape"].reverse()


def other_dtype(pack: Path, document: dict[str, Any]) -> None:
    """Of the same size, so that every length and offset stays right."""
    document["dtype"] = "F16"
    for field in document["layout"]["fields"]:
        field["dtype"] = "F16"


def put(pack: Path, document: dict[str, Any], path: str, data: bytes) -> None:
    (pack / path).write_bytes(data)
    (listed,) = (file for file in document["skeleton"] if file["path"] == path)
    listed.update(num_bytes=len(data), digest=blake3.blake3(data).hexdigest())


def config(**fields: object) -> Lie:
    return lambda pack, document: put(
        pack, document, CONFIG, json.dumps(json.loads((pack / CONFIG).read_bytes()) | fields).encode()
    )


def skeleton(change: Callable[[dict[str, torch.Tensor]], object]) -> Lie:
    def lie(pack: Path, document: dict[str, Any]) -> None:
        tensors = load((pack / SHARD).read_bytes())
        change(tensors)
        put(pack, document, SHARD, save(tensors))

    return lie


LIES: dict[str, tuple[Lie, str]] = {
    "renormalise": (router(renormalise=False), "its router is .*renormalise=False"),
    "scale": (router(scale=2.5), "its router is .*scale=2.5"),
    "score": (router(score="sigmoid"), "its router is score='sigmoid'"),
    "weights": (router(weights_dtype="float32"), "its router is "),
    "top-k": (says(top_k=2), "its top-k is 2, that of its config.json is 4"),
    "family": (says(family="olmoe"), "its family is olmoe, that of its config.json is qwen3_moe"),
    "hidden size": (says(hidden_size=32), "its hidden size is 32"),
    "blocks": (blocks, r"its list of MoE blocks is \[0, 7\]"),
    "layers": (one_layer, r"its list of MoE blocks is \[0\]"),
    "swapped fields": (swapped_fields, "its blobs are not as its config.json says"),
    "moved field": (moved_field, "its blobs are not as its config.json says"),
    "turned field": (turned_field, "its blobs are not as its config.json says"),
    "dtype": (other_dtype, "its experts are F16, but its config.json states BF16 and its skeleton is BF16"),
    "config: top-k": (config(num_experts_per_tok=3), "its top-k is 4"),
    "config: renormalise": (config(norm_topk_prob=False), "its router is "),
    "config: width": (config(moe_intermediate_size=16), "its blobs are not as its config.json says"),
    "config: heads": (config(num_attention_heads=2), "by its config.json"),
    "config: blocks": (config(mlp_only_layers=[1]), "its list of MoE blocks"),
    "number format": (
        says(numbers={"method": "fp8", "block": [128, 128]}),
        "its number format is method='fp8'.*, that of its config.json is None",
    ),
    "config: number format": (
        config(quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]}),
        "its number format is None, that of its config.json is method='fp8'",
    ),
    "foreign skeleton": (
        skeleton(lambda tensors: tensors.update({"model.norm.weight": torch.ones(32)})),
        "has shape .32.",
    ),
    "a tensor more": (
        skeleton(lambda tensors: tensors.update({"model.spy": torch.ones(1)})),
        "its skeleton has model.spy",
    ),
    "a tensor less": (
        skeleton(lambda tensors: tensors.pop("model.norm.weight")),
        "its skeleton lacks model.norm.weight",
    ),
    "integers": (
        skeleton(lambda tensors: tensors.update({"model.norm.weight": torch.ones(64, dtype=torch.int32)})),
        "model.norm.weight has dtype I32",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_found_by_verify_and_at_load(packed: Path, tmp_path: Path, name: str) -> None:
    lie, message = LIES[name]
    pack = Path(shutil.copytree(packed, tmp_path / "pack"))
    document = json.loads((pack / "manifest.json").read_bytes())
    lie(pack, document)
    told = Manifest.model_validate(document)
    told = told.model_copy(update={"model_id": told.content_id()})
    (pack / "manifest.json").write_bytes(told.to_json())
    with pytest.raises(CorruptData, match=message) as found:
        verify_pack(PackReader(LocalStore(pack))).raise_for_faults()
    with pytest.raises(CorruptData, match=message) as refused:
        load_slot_model(PackReader(LocalStore(pack)), slots=4)
    assert refused.value.reason == "PACK_MISMATCH"
    for error in (found, refused):
        assert "\n" not in str(error.value)
        assert str(error.value).count("pack the model again") == 1


def test_what_is_true_is_loaded(packed: Path) -> None:
    assert verify_pack(PackReader(LocalStore(packed))).faults == ()
    assert load_slot_model(PackReader(LocalStore(packed)), slots=4).manifest.top_k == 4


def test_a_checkpoint_whose_pack_would_be_refused_is_not_packed(tmp_path: Path) -> None:
    """Half-precision experts beside a float32 skeleton, under a config that says bfloat16."""
    values = checkpoints.config(dtype="bfloat16")
    data = {
        name: array if ".experts." in name else array.astype("float32")
        for name, array in checkpoints.tensors(values).items()
    }
    with pytest.raises(
        InvalidInput, match=r"experts are F16, but its config\.json states BF16 and its skeleton is F32"
    ):
        write_pack(open_source(str(checkpoints.write(tmp_path / "a", values, data))), LocalStore(tmp_path / "store"))
    checkpoints.write(tmp_path / "b", checkpoints.config(dtype="float16"), data)
    write_pack(open_source(str(tmp_path / "b")), LocalStore(tmp_path / "store"))
