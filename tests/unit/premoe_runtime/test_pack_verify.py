"""Verification finds every kind of damage and names the object."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from pydantic import ValidationError
from support.checkpoints import checkpoint

from premoe_runtime.formats.errors import CorruptData
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.packs.progress import Silent
from premoe_runtime.packs.reader import PackReader, open_pack
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.verify import Verification, verify_pack
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.storage import LocalStore


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    write_pack(open_source(str(checkpoint(folder / "model"))), LocalStore(folder / "store"))
    (pack,) = (folder / "store" / "models").iterdir()
    return pack


@pytest.fixture
def pack(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "pack"))


def verify(pack: Path) -> Verification:
    return verify_pack(PackReader(LocalStore(pack)))


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_a_whole_pack_is_good_and_was_read_entirely(pack: Path) -> None:
    class Meter(Silent):
        done = whole = 0

        def total(self, num_bytes: int) -> None:
            self.whole = num_bytes

        def advance(self, num_bytes: int) -> None:
            self.done += num_bytes

    meter = Meter()
    found = verify_pack(PackReader(LocalStore(pack)), meter)
    found.raise_for_faults()
    assert found.faults == ()
    assert meter.done == meter.whole
    assert found.bytes_read >= sum(path.stat().st_size for path in pack.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("file", "position", "message"),
    [
        ("experts/layer-001.safetensors", -1, "layer-001.safetensors layer 1 expert 5: does not match its digest"),
        ("experts/layer-000.safetensors", 4096, "layer-000.safetensors layer 0 expert 0: does not match its digest"),
        ("experts/layer-002.safetensors", 20, "experts/layer-002.safetensors: its header is damaged"),
        ("experts/layer-002.safetensors", 4095, "experts/layer-002.safetensors: its header is damaged"),
        ("skeleton/config.json", -2, "skeleton/config.json: "),
        ("skeleton/tokenizer.json", 3, "skeleton/tokenizer.json: does not match its digest"),
        ("skeleton/model-00001-of-00001.safetensors", -1, "00001.safetensors: does not match its digest"),
        ("skeleton/model-00001-of-00001.safetensors", 0, r"00001.safetensors: .*the header"),
        ("checks.safetensors", -1, r"checks.safetensors: .*does not match its digest"),
    ],
)
def test_one_flipped_bit_is_found_and_named(pack: Path, file: str, position: int, message: str) -> None:
    flip(pack / file, position)
    found = verify(pack)
    assert len(found.faults) >= 1
    with pytest.raises(CorruptData, match=message) as error:
        found.raise_for_faults()
    assert error.value.exit_code == 5
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "file", ["experts/layer-001.safetensors", "skeleton/tokenizer.json", "checks.safetensors", "skeleton/config.json"]
)
@pytest.mark.parametrize("damage", ["missing", "short", "long"])
def test_missing_and_wrongly_long_files_are_named(pack: Path, file: str, damage: str) -> None:
    data = (pack / file).read_bytes()
    if damage == "missing":
        (pack / file).unlink()
    else:
        (pack / file).write_bytes(data[:-1] if damage == "short" else data + b"\0")
    assert file in {fault.object for fault in verify(pack).faults}


def test_all_damage_is_listed(pack: Path) -> None:
    flip(pack / "experts/layer-000.safetensors", 4096)
    flip(pack / "experts/layer-000.safetensors", -1)
    (pack / "experts/layer-001.safetensors").unlink()
    flip(pack / "skeleton/chat_template.jinja", 0)
    found = verify(pack)
    assert [fault.object for fault in found.faults] == [
        "skeleton/chat_template.jinja",
        "experts/layer-000.safetensors layer 0 expert 0",
        "experts/layer-000.safetensors layer 0 expert 5",
        "experts/layer-001.safetensors",
    ]
    with pytest.raises(CorruptData, match=r"chat_template.jinja: does not match its digest \(and 3 more\)"):
        found.raise_for_faults()


def rewrite(pack: Path, **changes: object) -> None:
    """A manifest whose own id is right, where it can be, but whose content lies."""
    values = json.loads((pack / "manifest.json").read_text())
    values.update(changes)
    (pack / "manifest.json").write_text(json.dumps(values))
    with suppress(ValidationError):
        manifest = Manifest.model_validate_json(json.dumps(values))
        manifest = manifest.model_copy(update={"model_id": manifest.content_id()})
        (pack / "manifest.json").write_bytes(manifest.to_json())


def test_a_manifest_with_another_weights_id(pack: Path) -> None:
    rewrite(pack, weights_id="0" * 64)
    assert [str(fault) for fault in verify(pack).faults] == ["manifest.json: weights_id is not that of the tensors"]


def test_a_manifest_with_blobs_in_another_order(pack: Path) -> None:
    values = json.loads((pack / "manifest.json").read_text())
    values["layers"][1]["digests"].reverse()
    rewrite(pack, layers=values["layers"])
    assert len(verify(pack).faults) == 6


def test_a_manifest_with_swapped_layer_files(pack: Path) -> None:
    values = json.loads((pack / "manifest.json").read_text())
    one, two = values["layers"][0], values["layers"][1]
    one["file"], two["file"] = two["file"], one["file"]
    rewrite(pack, layers=values["layers"])
    assert len(verify(pack).faults) == 12


@pytest.mark.parametrize(("key", "value"), [("data_offset", -4096), ("stride", 4096), ("stride", 0)])
def test_a_manifest_whose_blobs_overlap_is_no_manifest(pack: Path, key: str, value: int) -> None:
    values = json.loads((pack / "manifest.json").read_text())
    values["layers"][0][key] = value
    rewrite(pack, layers=values["layers"])
    with pytest.raises(
        CorruptData, match=r"it places blobs over each other|data_offset: .* greater than or equal to 0"
    ):
        verify(pack)


@pytest.mark.parametrize(("key", "value"), [("data_offset", 0), ("stride", 12288)])
def test_a_manifest_that_places_blobs_elsewhere(pack: Path, key: str, value: int) -> None:
    values = json.loads((pack / "manifest.json").read_text())
    values["layers"][0][key] = value
    rewrite(pack, layers=values["layers"])
    assert [str(fault) for fault in verify(pack).faults] == [
        "manifest.json: it places the blobs of experts/layer-000.safetensors elsewhere"
    ]


def test_a_manifest_with_another_blob_layout(pack: Path) -> None:
    values = json.loads((pack / "manifest.json").read_text())
    values["layout"]["fields"].reverse()
    rewrite(pack, layout=values["layout"])
    assert [str(fault) for fault in verify(pack).faults] == ["manifest.json: its blobs are not as its config.json says"]


def test_a_manifest_that_leads_out_of_the_store(pack: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.safetensors").write_bytes(bytes(100))
    values = json.loads((pack / "manifest.json").read_text())
    values["layers"][0]["file"] = "../secret.safetensors"
    rewrite(pack, layers=values["layers"])
    with pytest.raises(CorruptData, match="is no path inside a pack"):
        verify(pack)


def test_a_pack_that_was_never_finished_is_no_pack(pack: Path) -> None:
    (pack / "manifest.json").unlink()
    with pytest.raises(Exception, match="no pack here"):
        open_pack(str(pack))
