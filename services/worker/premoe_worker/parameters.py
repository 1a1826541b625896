"""How many parameters a token's pass multiplies with."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from premoe_runtime.formats.manifest import DTYPE_BYTES, Manifest


class Parameters(NamedTuple):
    """``shared``: of all but the routed experts; ``expert``: of one routed expert in every MoE layer together."""

    shared: int = 0
    expert: int = 0


def parameters_of(manifest: Manifest) -> Parameters:
    """Counted off the manifest's bytes; zeros for packs in a number format, whose bytes do not tell.

    The few tensors that a skeleton keeps in another dtype (a correction bias) are counted by their bytes, too.
    """
    if manifest.numbers is not None:
        return Parameters()
    weights = sum(file.num_bytes for file in manifest.skeleton if file.path.endswith(".safetensors"))
    expert = sum(prod(field.shape) for field in manifest.layout.fields)
    return Parameters(weights // DTYPE_BYTES[manifest.dtype], manifest.num_layers * expert)
