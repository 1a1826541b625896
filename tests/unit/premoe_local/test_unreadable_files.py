"""Spoilt files of a store: whatever is wrong with whichever file, one line says what, where and what to do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from premoe_local.cli import command
from support.live_store import live_store

DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda file: file.write_bytes(b""),
    "half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "one bit": lambda file: file.write_bytes(file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 1])),
    "noise": lambda file: file.write_bytes(bytes(range(256))),
    "a list": lambda file: file.write_bytes(b"[]"),
    "null": lambda file: file.write_bytes(b"null"),
    "a folder": lambda file: _gone(file).mkdir(),
    "a dead link": lambda file: _gone(file).symlink_to("nowhere"),
    "a link to itself": lambda file: _gone(file).symlink_to(file.name),
}
READERS = {
    "models/*/manifest.json": ("pack", "verify", "{store}"),
    "models/*/checks.safetensors": ("pack", "verify", "{store}"),
    "models/*/experts/layer-000.safetensors": ("pack", "verify", "{store}"),
    "models/*/skeleton/config.json": ("pack", "verify", "{store}"),
    "models/*/skeleton/model-*.safetensors": ("pack", "verify", "{store}"),
    "profiles/*.safetensors": ("patterns", "build", "{store}"),
    "patterns/*.safetensors": ("patterns", "show", "{store}", "{name}"),
    "sets/*.json": ("patterns", "show", "{store}", "--set", "{name}"),
    "sets/*.safetensors": ("patterns", "show", "{store}", "--set", "{name}"),
    "live/*.json": ("patterns", "show", "{store}"),
}
ABSENT = ("a folder", "a dead link", "a link to itself")


def _gone(file: Path) -> Path:
    file.unlink()
    return file


def premoe(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed model with profiles and a live set."""
    folder = tmp_path_factory.mktemp("whole")
    live_store(folder)
    return folder / "store"


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", READERS)
def test_a_spoilt_file_is_one_line(whole: Path, tmp_path: Path, file: str, damage: str) -> None:
    store = tmp_path / "store"
    shutil.copytree(whole, store)
    spoilt = sorted(store.glob(file))[0]
    DAMAGE[damage](spoilt)
    before = sorted(store.rglob("*"))
    result = premoe(*(word.format(store=store, name=spoilt.stem) for word in READERS[file]))
    if result.exit_code == 0:
        assert damage in ABSENT, "it was read"  # a listing passes over what is no file
        return
    assert result.exit_code in (3, 5), result.output
    assert result.stdout == ""
    assert (result.stderr[:7], result.stderr.count("\n")) == ("error: ", 1)
    assert "; " in result.stderr, "nothing says what to do"
    assert sorted(store.rglob("*")) == before


CHECKPOINT = (
    "config.json",
    "model.safetensors.index.json",
    "model-00001-of-00003.safetensors",
    "generation_config.json",
)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", CHECKPOINT)
def test_a_spoilt_checkpoint_is_one_line_and_leaves_nothing(
    whole: Path, tmp_path: Path, file: str, damage: str
) -> None:
    source = tmp_path / "model"
    shutil.copytree(whole.parent / "qwen3_moe", source)
    DAMAGE[damage](source / file)
    result = premoe("pack", source, "--to", tmp_path / "store")
    if result.exit_code == 0:
        # A bit of a weight is a weight; the library's defaults stand in for the one file that may lack.
        assert damage == "one bit" or (damage == "a folder" and file == "generation_config.json")
        return
    assert result.exit_code in (2, 3, 5), result.output
    assert result.stdout == ""
    assert (result.stderr[:7], result.stderr.count("\n")) == ("error: ", 1)
    assert str(source) in result.stderr
    assert "; " in result.stderr, "nothing says what to do"
    assert not list(tmp_path.glob("store/**/*"))
