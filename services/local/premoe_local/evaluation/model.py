"""The model of an evaluation, wherever it lies, and what a worker's prober takes beside it."""

from __future__ import annotations

from pathlib import Path

from premoe_local.byte_bar import Bar
from premoe_runtime.engines.hf.model import CONFIG_FILE
from premoe_runtime.offline.sizing.configured import shape_of_config
from premoe_runtime.packs.ensure import ensure_pack
from premoe_runtime.packs.hub import HUB
from premoe_runtime.packs.reader import PackReader, open_pack
from premoe_runtime.storage import open_store


def opened(model: str, state: Path) -> PackReader:
    """The pack ``model`` names; a checkpoint is packed under ``state`` first. Raises what packing and opening raise."""
    if not model.startswith(HUB) and not (Path(model) / "config.json").is_file():
        return open_pack(model)
    store = open_store(str(state))
    bar = Bar()
    with bar.rich:
        manifest = ensure_pack(model, store, progress=bar)
    return open_pack(f"{store.url}/models/{manifest.model_id}")


def probe_experts(reader: PackReader) -> int:
    """How many experts' worth of weights a prober of its own holds, rounded up (a worker with a child's engine)."""
    shape = shape_of_config(reader.read_file(CONFIG_FILE), CONFIG_FILE)
    return -(-shape.probed_bytes // shape.slot_blob_bytes)
