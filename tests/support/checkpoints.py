"""Tiny random checkpoints of numpy arrays: every tensor that the family expects, written by the safetensors library."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import TensorSpec, serialize_file

from premoe_runtime.families.registry import read_model
from premoe_runtime.packs.checkpoint import INDEX_FILE, SINGLE_FILE

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]
DTYPES = {"float32": "float32", "float16": "float16", "uint16": "bfloat16"}
"""numpy dtype → dtype on disk: numpy has no bfloat16, so its bits travel as uint16."""

CONFIGS: Mapping[str, Mapping[str, object]] = {
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        "moe_intermediate_size": 24,
        "num_experts": 6,
        "norm_topk_prob": True,
        "head_dim": 8,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
    "qwen2_moe": {
        "model_type": "qwen2_moe",
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 16,
        "num_experts": 6,
    },
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4},
    "olmoe": {"model_type": "olmoe", "num_experts": 5, "norm_topk_prob": False},
}
COMMON: Mapping[str, object] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "eos_token_id": 0,
}
EXTRA_FILES: Mapping[str, str] = {
    "tokenizer.json": '{"version": "1.0"}',
    "tokenizer_config.json": '{"eos_token": "<|end|>"}',
    "generation_config.json": '{"do_sample": false}',
    "chat_template.jinja": "{{ messages }}",
    "README.md": "no part of the pack",
}


def config(family: str = "qwen3_moe", **overrides: object) -> dict[str, object]:
    """``config.json`` of a tiny model; an override of None removes the key."""
    values = {**COMMON, **CONFIGS[family], **overrides}
    return {key: value for key, value in values.items() if value is not None}


def tensors(
    values: Mapping[str, object], *, seed: int = 0, dtype: str = "float16", layer_experts: Sequence[int] = ()
) -> dict[str, Array]:
    """Random tensors for a config, by on-disk name; "uint16" stands for bfloat16 bits.

    ``layer_experts``: of every MoE layer, where they were pruned to fewer than the config says.
    """
    model = read_model(json.dumps(values).encode())
    model = model.cut_to(layer_experts) if layer_experts else model
    shapes: dict[str, tuple[int, ...]] = {name: spec.shape for name, spec in model.skeleton.items()}
    for layer in range(len(model.blocks)):
        for expert in range(model.layer_experts[layer]):
            shapes |= {model.expert_name(layer, expert, tensor): tensor.shape for tensor in model.expert_tensors}
    random = np.random.default_rng(seed)
    if dtype == "uint16":
        return {name: random.integers(0, 1 << 16, shapes[name], dtype="uint16") for name in sorted(shapes)}
    return {name: random.standard_normal(shapes[name]).astype(dtype) for name in sorted(shapes)}


def fused(
    values: Mapping[str, object], data: Mapping[str, Array], layers: tuple[int, ...] = (0, 1, 2)
) -> dict[str, Array]:
    """The tensors with the experts of ``layers`` fused, under the names of the module tree."""
    model = read_model(json.dumps(values).encode())
    left = {model.skeleton[name].memory if name in model.skeleton else name: one for name, one in data.items()}
    for layer in layers:
        router = model.skeleton[model.routers[layer]].memory
        for field in model.spec.fields:
            prefix = model.experts_prefix[layer]
            whole = [
                np.concatenate([left.pop(f"{prefix}.{expert}.{part}") for part in field.parts])
                for expert in range(len(left[router]))
            ]
            left[f"{model.experts_memory[layer]}.{field.fused}"] = np.stack(whole)
    return left


def save(path: Path, data: Mapping[str, Array]) -> None:
    """Write one safetensors file with the library's own writer."""
    arrays = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in data.items()}
    described = {
        name: TensorSpec(
            dtype=DTYPES[str(array.dtype)],
            shape=list(array.shape),
            data_ptr=array.ctypes.data,
            data_len=array.nbytes,
        )
        for name, array in arrays.items()
    }
    serialize_file(described, path, {"format": "pt"})


def write(
    folder: Path, values: Mapping[str, object], data: Mapping[str, Array], *, shards: int = 1, interleave: bool = True
) -> Path:
    """Write config, extra files and ``shards`` safetensors files (with an index when there are several)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    for name, text in EXTRA_FILES.items():
        (folder / name).write_text(text)
    names = sorted(data)
    if shards == 1:
        save(folder / SINGLE_FILE, data)
        return folder
    weight_map = {}
    for index, name in enumerate(names):
        shard = index % shards if interleave else index * shards // len(names)
        weight_map[name] = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
    for file in sorted(set(weight_map.values())):
        save(folder / file, {name: data[name] for name in names if weight_map[name] == file})
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def checkpoint(
    folder: Path,
    family: str = "qwen3_moe",
    *,
    shards: int = 1,
    seed: int = 0,
    layer_experts: Sequence[int] = (),
    **overrides: object,
) -> Path:
    """A tiny random checkpoint folder of ``family``."""
    values = config(family, **overrides)
    return write(folder, values, tensors(values, seed=seed, layer_experts=layer_experts), shards=shards)
