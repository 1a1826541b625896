"""Sources: folders, stores and a model hub; which files belong to a pack, and the key of a source's state."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.checkpoints import checkpoint
from support.hub import COMMIT, Hub, hub

from premoe_runtime.formats.errors import InvalidInput, NotFound, Unavailable
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.storage import LocalStore, open_store


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub(checkpoint(tmp_path / "model", shards=2)) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server


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


# --- hub -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["hf://org/name", "hf://org/name@main", f"hf://org/name@{COMMIT}"])
def test_a_hub_model_is_pinned_to_its_commit(served: Hub, text: str) -> None:
    source = open_source(text)
    assert (source.url, source.revision) == ("hf://org/name", COMMIT)
    assert "tokenizer.json" in source.skeleton_files


@pytest.mark.slow
def test_packing_from_a_hub_by_ranged_reads(served: Hub, tmp_path: Path) -> None:
    direct = write_pack(open_source(str(served.folder)), LocalStore(tmp_path / "a"))
    result = write_pack(open_source("hf://org/name"), LocalStore(tmp_path / "b"))
    assert result.manifest.model_id == direct.manifest.model_id
    assert (result.manifest.origin.url, result.manifest.origin.revision) == ("hf://org/name", COMMIT)
    shards = [span for path, span in served.requests if path.startswith("/cdn/") and path.endswith(".safetensors")]
    assert shards
    assert all(shards), "a shard was read without a range"
    assert served.tokens == {""}
    count = len(served.requests)
    assert write_pack(open_source("hf://org/name"), LocalStore(tmp_path / "b")).already_packed
    assert len(served.requests) == count + 2  # revision and file list


def test_the_hub_token_is_sent(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret-token")
    open_source("hf://org/name")
    assert served.tokens == {"Bearer secret-token"}


@pytest.mark.parametrize("text", ["hf://org/unknown", "hf://org/name@other"])
def test_a_hub_model_that_does_not_exist(served: Hub, text: str) -> None:
    with pytest.raises(NotFound, match="no such model or revision at http"):
        open_source(text)


@pytest.mark.parametrize(
    "text", ["hf://", "hf://name", "hf://a/b/c", "hf://a/b@", "hf://a/b@refs/pr/1", "hf://../x@y@z"]
)
def test_bad_hub_addresses(text: str) -> None:
    with pytest.raises(InvalidInput, match="write hf://org/name"):
        open_source(text)


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
        open_source("hf://org/name")


def test_a_server_that_is_no_hub(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answers are JSON of another kind."""
    monkeypatch.setattr("support.hub.COMMIT", "not a commit!")
    with pytest.raises(Unavailable, match="not a model hub's answer"):
        open_source("hf://org/name")


@pytest.mark.parametrize("endpoint", ["nonsense", "ftp://hub", "http://", "http://:x"])
def test_a_hub_address_that_is_none(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(InvalidInput, match=r"HF_ENDPOINT|http") as error:
        open_source("hf://org/name")
    assert "\n" not in str(error.value)
