"""Tiny random checkpoints: real Hugging Face folders of the stock classes, small enough for any test."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    MixtralConfig,
    OlmoeConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from support.family_rows import TINY

Family = Literal["qwen3_moe", "qwen2_moe", "mixtral", "olmoe"]
FAMILIES: tuple[Family, ...] = get_args(Family)

SPECIAL_TOKENS = ("<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
VOCAB_SIZE = 256 + len(SPECIAL_TOKENS) + 3
"""256 bytes, the special tokens, and three unused rows, as real checkpoints have."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: ids 0-255 are bytes in GPT-2's alphabet order, then ``SPECIAL_TOKENS``."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL_TOKENS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>", clean_up_tokenization_spaces=False
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def piece_tokenizer(*words: str) -> PreTrainedTokenizerFast:
    """A tokenizer in SentencePiece's manner, as Mixtral's: words begin with their space, other characters are bytes."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *words]
    vocabulary = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in names[:3]])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=True,
    )


def tiny_config(family: str = "qwen3_moe", **overrides: Any) -> Any:
    """2 MoE layers of 16 experts, top-4, hidden 64, expert width 32; every field can be overridden."""
    tokenizer = tiny_tokenizer()
    values: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_experts_per_tok": 4,
        "max_position_embeddings": 1024,
        # Wide enough that routers prefer some experts clearly and outputs differ between experts.
        "initializer_range": 0.2,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    if family == "qwen3_moe":
        extra: dict[str, Any] = {
            "num_experts": 16,
            "moe_intermediate_size": 32,
            "intermediate_size": 96,
            "head_dim": 16,
        }
        return Qwen3MoeConfig(**{**values, **extra, "norm_topk_prob": True, **overrides})
    if family == "qwen2_moe":
        extra = {"num_experts": 16, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 48}
        return Qwen2MoeConfig(**{**values, **extra, "intermediate_size": 96, **overrides})
    if family == "mixtral":
        extra = {"num_local_experts": 16, "intermediate_size": 32, "head_dim": 16, "sliding_window": None}
        return MixtralConfig(**{**values, **extra, **overrides})
    if family == "olmoe":
        return OlmoeConfig(**{**values, "num_experts": 16, "intermediate_size": 32, **overrides})
    given = {**values, **TINY[family], **overrides}
    return CONFIG_MAPPING[family](**{name: value for name, value in given.items() if value is not None})


def tiny_model(
    family: str = "qwen3_moe", dtype: torch.dtype = torch.float32, *, seed: int = 0, **overrides: Any
) -> PreTrainedModel:
    """A random stock model in eval mode on the CPU. Leaves torch's global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        attention = "eager" if family == "gpt_oss" else "sdpa"
        model = AutoModelForCausalLM.from_config(tiny_config(family, **overrides), attn_implementation=attention)
        model = model.to(dtype).eval()
        for name, tensor in model.state_dict(keep_vars=True).items():
            if name.endswith(
                ("e_score_correction_bias", "expert_bias")
            ):  # zero in stock classes, float32 in files of any dtype
                tensor.data = 0.1 * torch.randn(tensor.shape)
            elif name.endswith("_proj_bias"):
                tensor.data = torch.randn(tensor.shape).to(dtype)
            elif name.endswith("gate.wg.weight"):  # HunYuan's class declares them float32
                tensor.data = tensor.data.float()
            elif name.endswith("mlp.gate.weight") and not tensor.any():  # ERNIE's class leaves its routers at zero
                tensor.data = (0.2 * torch.randn(tensor.shape)).to(dtype)
    return model


def tiny_checkpoint(
    tmp_path: Path,
    family: str = "qwen3_moe",
    dtype: torch.dtype = torch.float32,
    *,
    seed: int = 0,
    shards: int = 2,
    called: str = "",
    **overrides: Any,
) -> Path:
    """Write ``tmp_path/<family>`` as ``save_pretrained`` does: at least ``shards`` shards, config, tokenizer.

    ``called``: another name that config.json gives the family, with code of its own.
    """
    model = tiny_model(family, dtype, seed=seed, **overrides)
    folder = tmp_path / family
    num_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    model.save_pretrained(folder, max_shard_size=num_bytes // shards if shards > 1 else num_bytes * 2)
    tiny_tokenizer().save_pretrained(folder)
    if called:
        place = folder / "config.json"
        config = json.loads(place.read_text())
        place.write_text(json.dumps(config | {"model_type": called, "auto_map": {"AutoConfig": "configuration.Other"}}))
    return folder


def prune(folder: Path, layer_experts: Sequence[int]) -> Path:
    """Leave the first experts of every layer of a saved checkpoint, as pruning tools do; config.json stays as it is."""
    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(shard)
        shard.unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    for name in list(tensors):
        part = re.fullmatch(r"model\.layers\.(\d+)\.\w+\.(gate\.weight|experts\.(\d+)\..*)", name)
        if part and part[3] is None:
            tensors[name] = tensors[name][: layer_experts[int(part[1])]].contiguous()
        elif part and int(part[3]) >= layer_experts[int(part[1])]:
            del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def pruned_model(
    model: PreTrainedModel, family: Family, layer_experts: Sequence[int], **overrides: Any
) -> PreTrainedModel:
    """The stock model that ``prune`` leaves: each layer's sparse part is one of a stock model of as many experts.

    ``overrides``: those of ``model``, which is changed.
    """
    config, key = model.config, "num_local_experts" if family == "mixtral" else "num_experts"
    for layer, count in enumerate(layer_experts):
        narrow = AutoModelForCausalLM.from_config(
            tiny_config(family, **{**overrides, key: count}),
            attn_implementation="sdpa",
            experts_implementation=config._experts_implementation,
        ).to(model.dtype)
        part, whole = narrow.model.layers[layer].mlp, model.model.layers[layer].mlp.state_dict()
        part.load_state_dict({name: whole[name][: len(one)] for name, one in part.state_dict().items()})
        model.model.layers[layer].mlp = part.eval()
    return model.requires_grad_(False)
