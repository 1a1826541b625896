"""Where packs lie in a store. No torch: the expert store looks here too."""

from __future__ import annotations

from collections.abc import Sequence

from premoe_runtime.formats.errors import InvalidInput, NotFound
from premoe_runtime.storage import Store

MANIFEST_FILE = "manifest.json"
MODELS_FOLDER = "models"


def pack_folder(model_id: str) -> str:
    return f"{MODELS_FOLDER}/{model_id}"


def packs_in(store: Store) -> list[str]:
    """Model ids of a store's packs. Raises what the store raises."""
    return [name for name in store.list_names(MODELS_FOLDER) if store.exists(f"{pack_folder(name)}/{MANIFEST_FILE}")]


def the_only(packs: Sequence[str], where: str) -> str:
    """The one pack of the store ``where``. Raises NotFound (MODEL_NOT_FOUND) and InvalidInput (MODEL_AMBIGUOUS)."""
    if not packs:
        raise NotFound(f"{where}: no pack here; write one with `premoe pack DIR --to URL`", reason="MODEL_NOT_FOUND")
    if len(packs) > 1:
        some = ", ".join(pack_folder(name) for name in packs[:5])
        raise InvalidInput(f"{where} holds {len(packs)} packs; name one: {some}", reason="MODEL_AMBIGUOUS")
    return packs[0]
