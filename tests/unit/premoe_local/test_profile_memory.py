"""A model larger than the memory that the kernel lets its process have: profiled and evaluated layer by layer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from premoe_local.cli import command
from support.limited_memory import Ended, premoe
from support.profiles import write_examples
from support.tiny import tiny_checkpoint

from premoe_runtime.offline.profile.room import room
from premoe_runtime.offline.profile.scores import USUAL
from premoe_runtime.offline.sizing.bill import PROCESS_BYTES
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.storage import open_store

pytestmark = pytest.mark.slow

BLOB_BYTES, EXPERTS, LAYERS = 3 * 1024 * 512 * 4, 16, 6
"""As held, in float32: 576 MiB in all, 96 MiB a layer."""
LIMIT_BYTES = 384 << 20
"""What the process may take beyond its imports: less than the experts."""
ROOM_BYTES = 240 << 20
"""Beyond one layer's experts and the skeleton: 64 MiB of staging, blobs as they are read, a batch, late imports."""

IMPORTS = (
    "premoe_runtime.offline.profile.measure",
    "premoe_local.commands.profile",
    "premoe_runtime.offline.patterns.library",
    "premoe_runtime.offline.evaluation.sweep",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the pack of a model of 288 MiB in bfloat16, and calibration data."""
    folder = tmp_path_factory.mktemp("memory")
    checkpoint = tiny_checkpoint(
        folder, "qwen3_moe", torch.bfloat16, hidden_size=512, moe_intermediate_size=1024, num_hidden_layers=LAYERS
    )
    write_pack(open_source(str(checkpoint)), open_store((folder / "store").as_uri()))
    shutil.rmtree(checkpoint)
    write_examples(folder / "digits.jsonl", "digits", 20)
    return folder


def evaluate(folder: Path, memory: int, *, limit_bytes: int = LIMIT_BYTES) -> Ended:
    """The patterns of the store ``set``, asked four prompts."""
    options = ["--data", f"digits={folder / 'digits.jsonl'}", "--budgets", "4/8", "--memory", str(memory), "--json"]
    arguments = ["eval", folder / "store", *options, "--limit", "4", "--store", folder / "set"]
    return premoe(arguments, limit_bytes=limit_bytes, imports=IMPORTS, cache=folder / "cache")


def profile(folder: Path, to: str, memory: int, *, limit_bytes: int = LIMIT_BYTES) -> Ended:
    options = ["--task", f"digits={folder / 'digits.jsonl'}", "--memory", str(memory), "--to", str(folder / to)]
    arguments = ["profile", folder / "store", *options]
    return premoe(arguments, limit_bytes=limit_bytes, imports=IMPORTS, cache=folder / "cache")


def test_only_layer_by_layer_does_it_fit_under_a_limit_and_the_profile_is_the_same(folder: Path) -> None:
    needed = room(open_pack(str(folder / "store")), torch.float32, USUAL)
    little, much = PROCESS_BYTES + (needed.whole + needed.one_layer) // 2, 1 << 40
    assert needed.whole - needed.one_layer >= (LAYERS - 1) * EXPERTS * BLOB_BYTES

    broken = profile(folder, "broken", much)
    assert broken.code == 7
    assert broken.notes[-1].startswith(f"error: no room for {EXPERTS} expert blobs of {BLOB_BYTES} bytes on cpu")
    streamed = profile(folder, "streamed", little)
    assert (streamed.code, "the model is profiled layer by layer" in streamed.notes[0]) == (0, True), streamed.notes
    skeleton = open_pack(str(folder / "store")).manifest().skeleton_bytes * 2
    assert streamed.over_bytes <= EXPERTS * BLOB_BYTES + skeleton + ROOM_BYTES
    assert streamed.over_bytes <= needed.one_layer
    whole = profile(folder, "whole", much, limit_bytes=4 << 30)
    assert whole.code == 0, whole.notes
    assert LAYERS * EXPERTS * BLOB_BYTES <= whole.over_bytes <= needed.whole
    stored = [[one.path for one in open_store(str(folder / to)).list("profiles")] for to in ("streamed", "whole")]
    assert stored[0] == stored[1] != []
    assert not any(file.is_file() for file in (folder / "cache").rglob("*"))


def test_its_patterns_are_evaluated_so_too(folder: Path) -> None:
    mask = folder / "mask.json"
    mask.write_text(json.dumps({"layers": [list(range(8))] * LAYERS}))
    told = ["import-mask", str(mask), "--pack", str(folder / "store"), "--task", "digits", "--to", str(folder / "set")]
    assert CliRunner().invoke(command, [*told, "--set-live"]).exit_code == 0
    needed = room(open_pack(str(folder / "store")), torch.float32, (), judged=True)

    broken = evaluate(folder, 1 << 40)
    assert broken.code == 7
    assert broken.notes[-1].startswith(f"error: no room for {EXPERTS} expert blobs of {BLOB_BYTES} bytes on cpu")
    streamed = evaluate(folder, PROCESS_BYTES + (needed.whole + needed.one_layer) // 2)
    assert (streamed.code, "the model is evaluated layer by layer" in streamed.notes[0]) == (0, True), streamed.notes
    assert streamed.over_bytes <= needed.one_layer
    found = {one["variant"]: one for one in json.loads(streamed.stdout)["results"]}
    assert found.keys() == {"full", "specialist", "random"}
    assert found["full"]["kl"] == 0 < found["specialist"]["kl"]
    assert found["full"]["retained_mass"] == pytest.approx(1)
    assert found["specialist"]["retained_mass"] < 0.9
    assert not any(file.is_file() for file in (folder / "cache").rglob("*"))
