"""Reading packs: ranges, counters, cancellation, and errors that name pack, layer and expert."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

import blake3
import pytest
from support.checkpoints import checkpoint, config, tensors, write

from premoe_runtime.formats.errors import Conflict, CorruptData, InvalidInput, NotFound
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.packs.reader import PackReader, open_pack
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.residency.source import ExpertSource
from premoe_runtime.storage import READ_PART_BYTES, LocalStore


class Spy(LocalStore):
    """Logs ``(file, offset, bytes)`` of every blob read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.reads: list[tuple[str, int, int]] = []

    def read_into(self, path: str, offset: int, views: Sequence[memoryview]) -> int:
        self.reads.append((path.rsplit("/", 1)[-1], offset, sum(view.nbytes for view in views)))
        return super().read_into(path, offset, views)


class Shelf:
    """Room for blobs, and the order in which they were done."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.blobs: dict[ExpertId, bytearray] = {}
        self.finished: list[ExpertId] = []

    def into(self, expert: ExpertId) -> memoryview:
        self.blobs[expert] = bytearray(b"\xaa" * self.manifest.layout.blob_bytes)
        return memoryview(self.blobs[expert])

    def done(self, expert: ExpertId, checked: bool) -> None:
        assert not checked, "only lengths are checked here"
        self.finished.append(expert)

    def is_right(self, expert: ExpertId) -> bool:
        return blake3.blake3(self.blobs[expert]).hexdigest() == self.manifest.digest(expert)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    write_pack(open_source(str(checkpoint(folder / "model"))), LocalStore(folder / "store"))
    return folder / "store"


@pytest.fixture
def store(packed: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(packed, tmp_path / "store"))


def reader_of(store: Path) -> tuple[PackReader, Spy]:
    (pack,) = (store / "models").iterdir()
    spy = Spy(store)
    return PackReader(spy, f"models/{pack.name}"), spy


def every(manifest: Manifest) -> list[ExpertId]:
    return [ExpertId(layer, expert) for layer in range(manifest.num_layers) for expert in range(manifest.num_experts)]


def test_it_is_an_expert_source(packed: Path) -> None:
    source: ExpertSource = open_pack(str(packed))
    assert source.manifest().family == "qwen3_moe"


def test_all_blobs_arrive_once_and_whole(packed: Path) -> None:
    reader, spy = reader_of(packed)
    shelf = Shelf(reader.manifest())
    reader.fetch(every(shelf.manifest), shelf.into, shelf.done)
    assert sorted(shelf.finished) == every(shelf.manifest)
    assert all(shelf.is_right(expert) for expert in shelf.finished)
    assert len(spy.reads) == 3  # one request a layer: six blobs lie side by side


def test_only_what_is_asked_for_is_read(packed: Path) -> None:
    reader, spy = reader_of(packed)
    shelf = Shelf(reader.manifest())
    before = reader.bytes_read
    wanted = [ExpertId(2, 3), ExpertId(0, 0), ExpertId(0, 1), ExpertId(0, 4), ExpertId(0, 0)]
    reader.fetch(wanted, shelf.into, shelf.done)
    size, start = shelf.manifest.layout.blob_bytes, shelf.manifest.layers[0].data_offset
    assert sorted(spy.reads) == [
        ("layer-000.safetensors", start, 2 * size),
        ("layer-000.safetensors", start + 4 * size, size),
        ("layer-002.safetensors", start + 3 * size, size),
    ]
    assert sorted(shelf.finished) == sorted(set(wanted))
    assert all(shelf.is_right(expert) for expert in shelf.finished)
    assert reader.bytes_read - before == 4 * size


def test_requests_stay_within_eight_mebibytes(tmp_path: Path) -> None:
    values = config(hidden_size=512, moe_intermediate_size=1500, num_experts=4, num_hidden_layers=1)
    folder = write(tmp_path / "model", values, tensors(values, dtype="float32"))
    write_pack(open_source(str(folder)), LocalStore(tmp_path / "store"))
    reader, spy = reader_of(tmp_path / "store")
    shelf = Shelf(reader.manifest())
    assert shelf.manifest.layout.blob_bytes > READ_PART_BYTES
    reader.fetch(every(shelf.manifest), shelf.into, shelf.done)
    assert all(shelf.is_right(expert) for expert in every(shelf.manifest))
    assert max(size for _, _, size in spy.reads) == READ_PART_BYTES
    assert len(spy.reads) == 8


def test_fetching_nothing(packed: Path) -> None:
    reader, spy = reader_of(packed)
    shelf = Shelf(reader.manifest())
    reader.fetch([], shelf.into, shelf.done)
    assert (spy.reads, shelf.finished) == ([], [])


def test_cancelled_before_the_start(packed: Path) -> None:
    reader, spy = reader_of(packed)
    shelf = Shelf(reader.manifest())
    reader.fetch(every(shelf.manifest), shelf.into, shelf.done, lambda: True)
    assert (spy.reads, shelf.finished, shelf.blobs) == ([], [], {})


def test_cancelled_midway(packed: Path) -> None:
    reader, _ = reader_of(packed)
    shelf = Shelf(reader.manifest())
    wanted = [expert for expert in every(shelf.manifest) if expert.expert % 2 == 0]
    reader.fetch(wanted, shelf.into, shelf.done, lambda: len(shelf.finished) >= 3)
    assert len(shelf.finished) == 3
    assert all(shelf.is_right(expert) for expert in shelf.finished)


@pytest.mark.parametrize("expert", [ExpertId(0, 6), ExpertId(3, 0), ExpertId(-1, 0), ExpertId(0, -1)])
def test_experts_that_do_not_exist(packed: Path, expert: ExpertId) -> None:
    reader, _ = reader_of(packed)
    shelf = Shelf(reader.manifest())
    with pytest.raises(NotFound, match=f"has no layer {expert.layer} expert {expert.expert}: 3 layers of 6 experts"):
        reader.fetch([expert], shelf.into, shelf.done)


def test_room_of_the_wrong_size(packed: Path) -> None:
    reader, _ = reader_of(packed)
    with pytest.raises(InvalidInput, match="layer 0 expert 1: 10 bytes of room"):
        reader.fetch([ExpertId(0, 1)], lambda expert: memoryview(bytearray(10)), lambda expert, checked: None)


def test_a_truncated_layer_names_pack_layer_and_expert(store: Path) -> None:
    reader, _ = reader_of(store)
    shelf = Shelf(reader.manifest())
    (file,) = store.glob("models/*/experts/layer-001.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(
        CorruptData,
        match=r"^pack file://.*/models/[0-9a-f]{64}: the file of layer 1 expert 5 is too short; pack the model again$",
    ):
        reader.fetch([ExpertId(0, 0), ExpertId(1, 5)], shelf.into, shelf.done)
    assert ExpertId(1, 5) not in shelf.finished


def test_a_missing_layer_names_pack_layer_and_experts(store: Path) -> None:
    reader, _ = reader_of(store)
    shelf = Shelf(reader.manifest())
    next(iter(store.glob("models/*/experts/layer-002.safetensors"))).unlink()
    with pytest.raises(CorruptData, match=r"the file of layer 2 experts 1 to 3 is missing; pack the model again$"):
        reader.fetch([ExpertId(2, 1), ExpertId(2, 2), ExpertId(2, 3)], shelf.into, shelf.done)


def test_several_threads_share_a_reader(packed: Path) -> None:
    reader, _ = reader_of(packed)
    shelves = [Shelf(reader.manifest()) for _ in range(6)]
    before = reader.bytes_read
    wanted = every(shelves[0].manifest)
    threads = [threading.Thread(target=reader.fetch, args=(wanted, shelf.into, shelf.done)) for shelf in shelves]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(shelf.is_right(expert) for shelf in shelves for expert in wanted)
    assert reader.bytes_read - before == 6 * shelves[0].manifest.experts_bytes


def test_skeleton_files_are_checked(store: Path) -> None:
    reader, _ = reader_of(store)
    assert reader.read_file("skeleton/tokenizer.json") == b'{"version": "1.0"}'
    (file,) = store.glob("models/*/skeleton/tokenizer.json")
    file.write_bytes(b'{"version": "6.6"}')
    with pytest.raises(CorruptData, match=r"skeleton/tokenizer.json does not match its digest"):
        reader.read_file("skeleton/tokenizer.json")
    file.write_bytes(b"{}")
    with pytest.raises(CorruptData, match=r"skeleton/tokenizer.json has 2 bytes, expected 18"):
        reader.read_file("skeleton/tokenizer.json")
    file.unlink()
    with pytest.raises(CorruptData, match=r"skeleton/tokenizer.json is missing; pack the model again"):
        reader.read_file("skeleton/tokenizer.json")
    for path in ("tokenizer.json", "manifest.json", "../../secret", "experts/layer-000.safetensors"):
        with pytest.raises(NotFound, match="has no file"):
            reader.read_file(path)


def test_open_pack_by_its_own_url_and_by_its_store(packed: Path) -> None:
    (pack,) = (packed / "models").iterdir()
    ids = {open_pack(url).manifest().model_id for url in (str(packed), packed.as_uri(), pack.as_uri(), f"{pack}/")}
    assert ids == {pack.name}


def test_open_pack_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no pack here; write one with `premoe pack"):
        open_pack(str(tmp_path / "nothing"))


def test_open_pack_of_a_store_with_several(store: Path, tmp_path: Path) -> None:
    write_pack(open_source(str(checkpoint(tmp_path / "other", "olmoe"))), LocalStore(store))
    with pytest.raises(InvalidInput, match=r"holds 2 packs; name one: models/[0-9a-f]{64}, models/"):
        open_pack(str(store))


def test_a_pack_of_another_model(packed: Path) -> None:
    reader = open_pack(str(packed))
    manifest = reader.manifest()
    reader.expect(model_id=manifest.model_id, weights_id=manifest.weights_id)
    for wrong in ({"model_id": "f" * 64}, {"weights_id": "e" * 64}):
        with pytest.raises(Conflict, match="is the pack of another model") as error:
            reader.expect(**wrong)
        assert error.value.reason == "WRONG_MODEL"


def test_a_pack_in_the_folder_of_another_model(store: Path) -> None:
    (pack,) = (store / "models").iterdir()
    pack.rename(store / "models" / ("0" * 64))
    with pytest.raises(CorruptData, match="holds the pack of another model"):
        open_pack(str(store))


def test_a_broken_manifest(store: Path) -> None:
    (manifest,) = store.glob("models/*/manifest.json")
    text = manifest.read_text()
    for broken in ("", "{", text.replace('"top_k": 2', '"top_k": 3'), text.replace('"olmoe"', '"x"')[:-9]):
        manifest.write_text(broken)
        with pytest.raises(CorruptData, match=r"manifest.json: "):
            open_pack(str(store))
