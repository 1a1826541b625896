from __future__ import annotations

from pathlib import Path

import pytest
from premoe_expert_store.catalogue import Catalogue
from support.checkpoints import checkpoint

from premoe_runtime.formats.errors import NotFound
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.storage import LocalStore


async def test_a_pack_is_found_with_and_without_the_algorithm_in_its_id(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    manifest = write_pack(open_source(str(checkpoint(tmp_path / "model"))), store).manifest
    catalogue = Catalogue(store)
    plain = await catalogue.pack(manifest.model_id)
    assert await catalogue.pack(f"blake3:{manifest.model_id}") is plain


async def test_an_unknown_pack_is_not_found_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no pack 0000") as caught:
        await Catalogue(LocalStore(tmp_path)).pack("blake3:" + "0" * 64)
    assert caught.value.reason == "MODEL_NOT_FOUND"
