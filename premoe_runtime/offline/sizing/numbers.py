"""What if a checkpoint's weights were stored in another number format: its config, made to say so."""

from __future__ import annotations

from collections.abc import Mapping

DTYPES: Mapping[str, str] = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}
"""Number formats without scales, by the names that people give them."""
DEFAULT_DTYPE = "BF16"
"""Of a config that does not say what its weights are."""
_STATED = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def _integers(bits: int, stored: str, **groups: object) -> Mapping[str, object]:
    weights = {"num_bits": bits, "type": "int", "symmetric": True, **groups}
    config = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {
        "quant_method": "compressed-tensors",
        "format": stored,
        "config_groups": config,
        "ignore": ["lm_head"],
    }


WHAT_IF: Mapping[str, Mapping[str, object]] = {
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "int8": _integers(8, "int-quantized", strategy="channel"),
    "int4": _integers(4, "pack-quantized", strategy="group", group_size=128),
    "mxfp4": {"quant_method": "mxfp4"},
}
"""The usual form of each as a ``quantization_config``: linear layers but for the head and routers; of mxfp4 experts."""


def with_dtype(data: Mapping[str, object], dtype: str) -> dict[str, object]:
    """The config with its weights in one of ``DTYPES`` or ``WHAT_IF``; what formats leave alone stays as it is."""
    plain = {key: value for key, value in data.items() if key != "quantization_config"}
    if dtype in WHAT_IF:
        return {**plain, "quantization_config": dict(WHAT_IF[dtype])}
    return {**plain, "dtype": _STATED[dtype], "torch_dtype": _STATED[dtype]}


def name_of(dtype: str) -> str:
    """``BF16`` → ``bf16``."""
    return next((name for name, known in DTYPES.items() if known == dtype), dtype)
