"""Checkpoints whose layers were pruned to different numbers of experts: read, packed, verified, repaired, refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import CONFIGS, Array, config, fused, tensors, write
from support.tiny import prune, tiny_checkpoint

from premoe_runtime.engines.hf.model import load_slot_model
from premoe_runtime.formats.arrays import existing
from premoe_runtime.formats.errors import CorruptData, InvalidInput, NotFound
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.packs.checkpoint import INDEX_FILE
from premoe_runtime.packs.reader import PackReader
from premoe_runtime.packs.repair import pack_or_repair
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.verify import verify_pack
from premoe_runtime.packs.writer import PackResult
from premoe_runtime.storage import LocalStore

COUNTS = (4, 2, 3)
GATE = "model.layers.1.mlp.gate.weight"


def pack(folder: Path) -> PackResult:
    return pack_or_repair(open_source(str(folder)), LocalStore(folder.parent / "store"))


def reader(folder: Path, manifest: Manifest) -> PackReader:
    return PackReader(LocalStore(folder.parent / "store"), f"models/{manifest.model_id}")


def refused(folder: Path, kind: type[Exception], message: str, reason: str) -> None:
    with pytest.raises(kind, match=message) as raised:
        pack(folder)
    assert raised.value.reason == reason  # type: ignore[attr-defined]
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("family", sorted(CONFIGS))
@pytest.mark.parametrize("counts", [COUNTS, (3, 3, 2), (3, 3, 3)], ids=str)
def test_uneven_layers_pack_the_same_one_by_one_and_fused(tmp_path: Path, family: str, counts: tuple[int, ...]) -> None:
    values = config(family)
    data = tensors(values, layer_experts=counts)
    alone = pack(write(tmp_path / "alone", values, data)).manifest
    assert (alone.layer_experts, alone.num_experts, alone.num_blobs) == (counts, max(counts), sum(counts))
    for name, layers, shards in (("fused", (0, 1, 2), 1), ("mixed", (1,), 3)):
        again = pack(write(tmp_path / name, values, fused(values, data, layers), shards=shards)).manifest
        assert (again.weights_id, again.model_id) == (alone.weights_id, alone.model_id)
    found = verify_pack(reader(tmp_path / "alone", alone))
    assert found.faults == ()
    assert Manifest.parse(alone.to_json()).exists.tolist() == existing(counts).tolist()


def test_other_numbers_of_experts_are_other_weights(tmp_path: Path) -> None:
    values = config()
    ids = set()
    for number, counts in enumerate([(4, 2, 3), (4, 3, 3), (5, 2, 3)]):
        folder = write(tmp_path / str(number), values, tensors(values, layer_experts=counts))
        ids.add(pack(folder).manifest.weights_id)
    assert len(ids) == 3


def test_a_reader_gives_every_expert_that_exists_and_no_other(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", config(), tensors(config(), layer_experts=COUNTS))
    manifest = pack(folder).manifest
    source = reader(folder, manifest)
    arrived: list[ExpertId] = []
    blobs: dict[ExpertId, bytearray] = {}

    def into(expert: ExpertId) -> memoryview:
        blobs[expert] = bytearray(manifest.layout.blob_bytes)
        return memoryview(blobs[expert])

    every = [ExpertId(layer, expert) for layer, count in enumerate(COUNTS) for expert in range(count)]
    source.fetch(every, into, lambda expert, checked: arrived.append(expert))
    assert sorted(arrived) == every
    with pytest.raises(NotFound, match="has no layer 1 expert 2: 3 layers of 4/2/3 experts"):
        source.fetch([ExpertId(1, 2)], into, lambda expert, checked: arrived.append(expert))


@pytest.mark.parametrize("file", ["experts/layer-001.safetensors", "checks.safetensors"])
def test_a_damaged_uneven_pack_is_repaired(tmp_path: Path, file: str) -> None:
    folder = write(tmp_path / "model", config(), tensors(config(), layer_experts=COUNTS))
    manifest = pack(folder).manifest
    path = tmp_path / "store/models" / manifest.model_id / file
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    assert [fault.file for fault in verify_pack(reader(folder, manifest)).faults] == [file]
    assert pack(folder).repaired == (file,)
    assert path.read_bytes() == whole


def test_a_run_that_was_killed_goes_on(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", config(), tensors(config(), layer_experts=COUNTS))
    manifest = pack(folder).manifest
    (tmp_path / "store/models" / manifest.model_id / "experts/layer-002.safetensors").write_bytes(b"short")
    (tmp_path / "store/models" / manifest.model_id / "manifest.json").unlink()
    assert pack(folder).manifest == manifest
    assert verify_pack(reader(folder, manifest)).faults == ()


def test_index_entries_of_pruned_experts_are_left_out_with_a_note(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", config(), tensors(config(), layer_experts=COUNTS), shards=2)
    index = json.loads((folder / INDEX_FILE).read_text())
    stale = "model.layers.1.mlp.experts.5.up_proj.weight"
    index["weight_map"][stale] = "model-00001-of-00002.safetensors"
    (folder / INDEX_FILE).write_text(json.dumps(index))
    result = pack(folder)
    assert (result.manifest.layer_experts, result.dropped) == (COUNTS, ((stale, "stale entry of the index"),))


def cut(name: str, rows: int) -> Callable[[dict[str, Array]], None]:
    return lambda data: data.update({name: data[name][:rows]})


def without(name: str) -> Callable[[dict[str, Array]], None]:
    def lose(data: dict[str, Array]) -> None:
        del data[name]

    return lose


WRONG: dict[str, tuple[Callable[[dict[str, Array]], None], type[Exception], str, str]] = {
    "fewer than top-k": (
        cut(GATE, 1), InvalidInput, f"{GATE} has 1 rows, but .* every token needs 2 experts; prune fewer",
        "EXPERTS_TOO_FEW",
    ),
    "an expert is lost": (
        without("model.layers.1.mlp.experts.1.up_proj.weight"), CorruptData, "experts.1.up_proj.weight is missing",
        "TENSOR_MISSING",
    ),
    "a router row is lost": (
        cut("model.layers.0.mlp.gate.weight", 3), InvalidInput,
        "unexpected tensor model.layers.0.mlp.experts.3.* with 3/2/3 experts a layer", "UNEXPECTED_TENSOR",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG.keys())
def test_what_is_no_pruned_model_is_refused(tmp_path: Path, case: tuple[Any, type[Exception], str, str]) -> None:
    change, kind, message, reason = case
    data = tensors(config(), layer_experts=COUNTS)
    change(data)
    refused(write(tmp_path / "model", config(), data), kind, message, reason)


def test_more_experts_than_the_config_says_are_refused_with_what_to_do(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", config(), tensors(config(num_experts=8), layer_experts=(6, 8, 7)))
    refused(folder, InvalidInput, f"{GATE} has 8 rows, but config.json says 6 experts; write", "EXPERTS_TOO_MANY")


def one_blob_less(document: dict[str, Any]) -> None:
    document["layers"][0]["digests"].pop()


def one_blob_more(document: dict[str, Any]) -> None:
    document["layers"][1]["digests"].append("0" * 64)


@pytest.mark.parametrize("lie", [one_blob_less, one_blob_more])
def test_counts_that_contradict_the_skeleton_are_damaged_data(
    tmp_path: Path, lie: Callable[[dict[str, Any]], None]
) -> None:
    folder = prune(tiny_checkpoint(tmp_path), (12, 9))
    manifest = pack(folder).manifest
    document = json.loads(manifest.to_json())
    lie(document)
    document["num_experts"] = max(len(layer["digests"]) for layer in document["layers"])
    told = Manifest.model_validate_json(json.dumps(document))
    told = told.model_copy(update={"model_id": told.content_id()})
    place = tmp_path / "store/models" / manifest.model_id
    (place / "manifest.json").write_bytes(told.to_json())
    place.rename(place.parent / told.model_id)
    faults = verify_pack(reader(folder, told)).faults
    assert [fault.file for fault in faults] == ["manifest.json"]
    with pytest.raises(CorruptData, match=r"the pack contradicts itself: .*gate.weight has shape .* by its manifest"):
        load_slot_model(reader(folder, told), slots=2)
