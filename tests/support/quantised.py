"""Tiny checkpoints in the number formats that models are shipped in: names, dtypes and configs as on their hubs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from support.tiny import tiny_checkpoint

Tensors = dict[str, torch.Tensor]
FP8: Mapping[str, Any] = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}
MXFP4: Mapping[str, Any] = {
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
    "quant_method": "mxfp4",
}
LEFT_ALONE = ("embed_tokens", "lm_head", "norm", "mlp.gate.", "bias")


def fp8_checkpoint(
    folder: Path, family: str, *, block: int = 128, scales: torch.dtype = torch.float32, **overrides: Any
) -> Path:
    """A bfloat16 checkpoint whose linear layers are F8_E4M3 with a scale a block, as DeepSeek and Qwen3 ship theirs."""
    made = tiny_checkpoint(folder, family, torch.bfloat16, **overrides)
    tensors = read(made)
    for name in [name for name in tensors if name.endswith(".weight") and not any(one in name for one in LEFT_ALONE)]:
        tensors[name], tensors[f"{name}_scale_inv"] = to_fp8(tensors[name].float(), block, scales)
    return write(made, tensors, {**FP8, "weight_block_size": [block, block]})


def to_fp8(weight: torch.Tensor, block: int, scales: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """float8_e4m3fn of the weight's shape, and [⌈rows / block⌉, ⌈columns / block⌉] of what to multiply it by."""
    rows, columns = weight.shape
    made = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    factors = torch.empty(-(-rows // block), -(-columns // block))
    for row in range(factors.shape[0]):
        for column in range(factors.shape[1]):
            part = (slice(row * block, (row + 1) * block), slice(column * block, (column + 1) * block))
            factors[row, column] = (weight[part].abs().max() / 448).to(scales)
            made[part] = (weight[part] / factors[row, column]).clamp(-448, 448).to(torch.float8_e4m3fn)
    return made, factors.to(scales)


def mxfp4_checkpoint(folder: Path, **overrides: Any) -> Path:
    """GPT-OSS as it is shipped: experts' matrices in blocks of random numbers of 4 bits, everything else bfloat16."""
    made = tiny_checkpoint(folder, "gpt_oss", torch.bfloat16, **overrides)
    tensors, random = read(made), torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, columns, rows = tensors.pop(name).shape
        groups = (experts, rows, columns // 32)
        tensors[f"{name}_blocks"] = torch.randint(256, (*groups, 16), generator=random, dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(121, 125, groups, generator=random, dtype=torch.uint8)
    return write(made, tensors, MXFP4)


def read(folder: Path) -> Tensors:
    """Every tensor of a checkpoint."""
    return {name: one for shard in sorted(folder.glob("*.safetensors")) for name, one in load_file(shard).items()}


def write(folder: Path, tensors: Tensors, quantization: Mapping[str, Any] | None) -> Path:
    """Replace a checkpoint's tensors, every second one in a second shard, so that scales lie apart from weights."""
    for old in (*folder.glob("*.safetensors"), *folder.glob("*.index.json")):
        old.unlink()
    places = {
        name: f"model-{(index + ('scale' in name)) % 2 + 1}.safetensors" for index, name in enumerate(sorted(tensors))
    }
    for file in set(places.values()):
        part = {name: tensors[name].contiguous() for name, place in places.items() if place == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    configure(folder, quantization_config=quantization)
    return folder


def configure(folder: Path, **changes: Any) -> None:
    """Set fields of config.json; None removes one."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({name: one for name, one in config.items() if one is not None}))
