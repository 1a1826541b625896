"""Files of API keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from premoe_gateway.access.keys import Key, KeyFile, digest, new_key, written


def write_keys(path: Path, limits: Mapping[str, Mapping[str, int]]) -> dict[str, str]:
    """Put a file with these keys in place of what is there, as a whole. Returns the keys by name."""
    made = {name: new_key() for name in limits}
    keys = tuple(
        Key.model_validate({"name": name, "sha256": digest(made[name].encode()), **limits[name]}) for name in limits
    )
    replace_file(path, written(KeyFile(keys=keys)))
    return made


def replace_file(path: Path, data: bytes) -> None:
    """Another file under the same name, as Kubernetes and `premoe keys` change theirs."""
    fresh = path.with_suffix(".new")
    fresh.write_bytes(data)
    fresh.replace(path)
