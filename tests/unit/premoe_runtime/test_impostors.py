"""What lies where a model's file should be is named as what it is, whichever file it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.checkpoints import checkpoint

from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.packs.checkpoint import INDEX_FILE, open_checkpoint
from premoe_runtime.packs.impostors import refuse_non_weights
from premoe_runtime.storage import LocalStore

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4999819336\n"
PAGE = b"\xef\xbb\xbf\n<!DOCTYPE html><html><body>Sign in to continue</body></html>"
STORE_ERROR = b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>'
SHARD = "model-00002-of-00002.safetensors"


@pytest.mark.parametrize("file", [SHARD, INDEX_FILE, "config.json", "tokenizer.json", "chat_template.jinja"])
@pytest.mark.parametrize(
    ("content", "says", "reason"),
    [
        (POINTER, "is a Git LFS pointer.*git lfs pull", "LFS_POINTER"),
        (b"# xet version 0\nfilesize = 3\n", "is a Git LFS pointer", "LFS_POINTER"),
        (PAGE, "is a web page.*download it again", "WEB_PAGE"),
        (STORE_ERROR, "is a web page", "WEB_PAGE"),
    ],
)
def test_in_every_file_of_a_checkpoint(tmp_path: Path, file: str, content: bytes, says: str, reason: str) -> None:
    folder = checkpoint(tmp_path / "model", shards=2)
    (folder / file).write_bytes(content)
    store = LocalStore(folder)
    with pytest.raises(InvalidInput, match=f"{file} {says}") as error:
        open_checkpoint(store, store.list())
    assert error.value.reason == reason
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"Entry not found", "is text .'Entry not found'., not weights"),
        (b'{\n "error": "Access to model org/name is restricted"}', "is text"),
        ("Zugriff verweigert: für Köche gesperrt".encode(), "is text"),
        (b"GGUF\x03\x00\x00\x00", "is a GGUF file"),
    ],
)
def test_in_place_of_weights(content: bytes, says: str) -> None:
    with pytest.raises(InvalidInput, match=f"^shard {says}"):
        refuse_non_weights(content, "shard")


def test_weights_pass(tmp_path: Path) -> None:
    store = LocalStore(checkpoint(tmp_path / "model"))
    for info in store.list():
        if info.path.endswith(".safetensors"):
            refuse_non_weights(store.get(info.path)[:512], info.path)
