"""The model of an evaluation, wherever it lies, and what a worker's prober takes beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from premoe_local.byte_bar import Bar
from premoe_runtime.engines.hf.model import CONFIG_FILE
from premoe_runtime.families.registry import parse_config
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.offline.sizing.configured import shape_of_config
from premoe_runtime.packs.ensure import ensure_pack
from premoe_runtime.packs.hub import HUB
from premoe_runtime.packs.reader import PackReader, open_pack
from premoe_runtime.packs.source import open_source
from premoe_runtime.storage import open_store


@dataclass(frozen=True, slots=True)
class Described:
    """What its config says of a model. ``probe``: experts' worth of weights, rounded up, that a prober of its own holds
    (a worker with its engine in a child process).
    """

    family: str
    top_k: int
    experts: int
    probe: int


def describe(model: str) -> Described:
    """Of a checkpoint or a pack, of which nothing else is read. Raises what opening and reading raise."""
    config = (
        open_source(model).store.get("config.json") if _checkpoint(model) else open_pack(model).read_file(CONFIG_FILE)
    )
    spec, _ = parse_config(config, f"config.json of {model}")
    shape = shape_of_config(config, f"config.json of {model}")
    return Described(spec.name, shape.top_k, shape.num_experts, -(-shape.probed_bytes // shape.slot_blob_bytes))


def describe_all(models: Sequence[str]) -> Described:
    """What all have alike. Raises InvalidInput where they differ, and like ``describe``."""
    first, *rest = [describe(model) for model in models]
    for model, other in zip(models[1:], rest, strict=True):
        if other != first:
            raise InvalidInput(
                f"{model} is {_shape(other)}, {models[0]} {_shape(first)}; several models are training seeds of one "
                "thing, so evaluate these one by one",
                reason="MODELS_UNLIKE",
            )
    return first


def _shape(one: Described) -> str:
    return f"{one.family} of {one.experts} experts, {one.top_k} a token"


def opened_all(models: Sequence[str], state: Path) -> list[PackReader]:
    """The packs that ``models`` name. Raises InvalidInput where two have the same weights, and like ``opened``."""
    readers: dict[str, PackReader] = {}
    for model in models:
        reader = opened(model, state)
        if readers.setdefault(reader.manifest().weights_id, reader) is not reader:
            raise InvalidInput(f"{model}: these weights are named twice; name each once", reason="MODELS_UNLIKE")
    return list(readers.values())


def opened(model: str, state: Path) -> PackReader:
    """The pack ``model`` names; a checkpoint is packed under ``state`` first. Raises what packing and opening raise."""
    if not _checkpoint(model):
        return open_pack(model)
    store = open_store(str(state))
    bar = Bar()
    with bar.rich:
        manifest = ensure_pack(model, store, progress=bar)
    return open_pack(f"{store.url}/models/{manifest.model_id}")


def _checkpoint(model: str) -> bool:
    return model.startswith(HUB) or (Path(model) / "config.json").is_file()
