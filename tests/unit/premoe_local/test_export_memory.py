"""A model larger than the memory that the kernel lets its process have: exported, as blobs and chunks pass."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from support.exports import random_pattern
from support.limited_memory import premoe
from support.tiny import tiny_checkpoint

from premoe_runtime.packs.reader import open_pack
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.storage import open_store

pytestmark = pytest.mark.slow

LAYERS, KEPT = 6, 15
EXPERT_BYTES = 3 * 1024 * 512 * 2
LIMIT_BYTES = 200 << 20
"""What the process may take beyond its imports: less than what it writes."""
IMPORTS = (
    "premoe_local.commands.export",
    "premoe_runtime.offline.export.writer",
    "premoe_runtime.engines.hf.blocks",
    "transformers.models.qwen3_moe.modeling_qwen3_moe",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the pack of a model of 288 MiB, and a pattern."""
    folder = tmp_path_factory.mktemp("memory")
    checkpoint = tiny_checkpoint(
        folder, "qwen3_moe", torch.bfloat16, hidden_size=512, moe_intermediate_size=1024, num_hidden_layers=LAYERS
    )
    write_pack(open_source(str(checkpoint)), open_store((folder / "store").as_uri()))
    shutil.rmtree(checkpoint)
    pattern = random_pattern(open_pack(str(folder / "store")).manifest())
    (folder / "pattern.safetensors").write_bytes(pattern.to_bytes())
    return folder


def test_an_export_takes_a_few_blobs_of_memory_and_not_the_model(folder: Path) -> None:
    arguments = ["export", folder / "store", "--pattern", folder / "pattern.safetensors", "--budget", f"4/{KEPT}"]
    ended = premoe(
        [*arguments, "--to", folder / "cut"], limit_bytes=LIMIT_BYTES, imports=IMPORTS, cache=folder / "cache"
    )
    assert ended.code == 0, ended.notes
    written = sum(file.stat().st_size for file in (folder / "cut").glob("*.safetensors"))
    assert written > LAYERS * KEPT * EXPERT_BYTES > 1.3 * LIMIT_BYTES
    assert ended.over_bytes < LIMIT_BYTES
