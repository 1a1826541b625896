"""Tiny dense checkpoints, for what makes models with experts of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from support.tiny import tiny_tokenizer


def dense_checkpoint(folder: Path, family: str, shards: bool = False, **overrides: Any) -> Path:
    """A random dense checkpoint, as its stock class saves it."""
    values = {
        "vocab_size": 272,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "initializer_range": 0.2,
        "rms_norm_eps": 1e-3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 123.0},
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **{**values, **overrides})
        model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder, max_shard_size="60KB" if shards else "1GB")
    tiny_tokenizer().save_pretrained(folder)
    return folder
