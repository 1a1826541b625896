"""Sources: folders, stores and a model hub; which files belong to a pack, and the key of a source's state."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.checkpoints import checkpoint

from premoe_runtime.formats.errors import NotFound
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.storage import LocalStore, open_store


def test_a_folder_by_path_and_by_url(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "my model")
    sources = [open_source(text) for text in (str(folder), f"{folder}/", folder.as_uri())]
    assert {source.url for source in sources} == {folder.as_uri()}
    assert len({source.key for source in sources}) == 1
    assert sources[0].skeleton_files == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_files_that_are_no_part_of_a_model_do_not_matter(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    key = open_source(str(folder)).key
    (folder / "notes.txt").write_text("mine")
    (folder / "README.md").write_text("changed")
    (folder / "logs").mkdir()
    (folder / "logs" / "model.safetensors").write_text("old")
    assert open_source(str(folder)).key == key
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool.jinja").write_text("{{ x }}")
    assert open_source(str(folder)).key != key
    assert "additional_chat_templates/tool.jinja" in open_source(str(folder)).skeleton_files


def test_the_key_follows_the_state_of_the_files(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    first = open_source(str(folder)).key
    assert open_source(str(folder)).key == first
    stamp = (folder / "config.json").stat()
    os.utime(folder / "config.json", ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1_000_000))
    assert open_source(str(folder)).key != first


@pytest.mark.parametrize("text", ["nowhere/at/all", "memory://nothing-here"])
def test_a_source_that_does_not_exist(text: str) -> None:
    with pytest.raises(NotFound, match="no such folder, or an empty one"):
        open_source(text)


def test_from_one_store_to_another(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", shards=2)
    direct = write_pack(open_source(str(folder)), LocalStore(tmp_path / "a"))
    memory = open_store("memory://checkpoint-source/model")
    for path in folder.iterdir():
        memory.put(path.name, path.read_bytes())
    through = write_pack(open_source("memory://checkpoint-source/model"), open_store("memory://checkpoint-target"))
    assert through.manifest.model_id == direct.manifest.model_id
    assert through.url == f"memory://checkpoint-target/models/{direct.manifest.model_id}"


def test_a_dead_link_is_named_with_its_target(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", shards=2)
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to("nobody-reads-this")
    open_source(str(folder))
    shard = folder / "model-00001-of-00002.safetensors"
    shard.unlink()
    shard.symlink_to("../blobs/0123")
    with pytest.raises(NotFound, match=r"model-00001-of-00002.safetensors is a link to \.\./blobs/0123, which is not"):
        open_source(str(folder))
    gone = tmp_path / "gone"
    gone.symlink_to(tmp_path / "unmounted")
    with pytest.raises(NotFound, match=r"gone: is a link to .*/unmounted, which is not there"):
        open_source(str(gone))


def test_links_that_lead_somewhere_are_files(tmp_path: Path) -> None:
    blobs = checkpoint(tmp_path / "blobs")
    for kind, target in (("relative", Path("../blobs")), ("absolute", blobs)):
        folder = tmp_path / kind
        folder.mkdir()
        for path in blobs.iterdir():
            (folder / path.name).symlink_to(target / path.name)
        assert [info.path for info in open_source(str(folder)).files] == [
            info.path for info in open_source(str(blobs)).files
        ]


def test_a_file_and_a_whole_cache_are_no_checkpoint_folder(tmp_path: Path) -> None:
    checkpoint(tmp_path / "models--org--name/snapshots/0123abc")
    with pytest.raises(NotFound, match="give a snapshot in it, as snapshots/0123abc"):
        open_source(str(tmp_path / "models--org--name"))
    with pytest.raises(NotFound, match=r"config\.json is a file; give the folder"):
        open_source(str(tmp_path / "models--org--name/snapshots/0123abc/config.json"))
