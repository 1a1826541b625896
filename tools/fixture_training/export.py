"""Export a trained model as an ordinary Hugging Face folder."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, Qwen3MoeConfig, Qwen3MoeForCausalLM

from fixture_training.chat import CONTEXT, end_token, wrap
from fixture_training.model import Shape
from fixture_training.trainer import Trainer

SHARD = "3MB"
TRAINING = "training.json"


def stock_config(shape: Shape, end: int) -> Qwen3MoeConfig:
    """The stock configuration of the same shape."""
    return Qwen3MoeConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.expert_width,
        moe_intermediate_size=shape.expert_width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_width,
        num_experts=shape.experts,
        num_experts_per_tok=shape.experts_per_token,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        tie_word_embeddings=True,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=end,
    )


def stock_model(trainer: Trainer, end: int) -> Any:
    """The trained weights in the stock class."""
    model = Qwen3MoeForCausalLM(stock_config(trainer.recipe.shape, end)).eval()
    weights = dict(trainer.model.state_dict())
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, strict=True)
    return model.to(torch.bfloat16)


def _use_published_names(folder: Path) -> None:
    """Write the settings under the names of Qwen's own checkpoints, which every reader of them knows."""
    for file, names in (
        ("config.json", {"num_local_experts": "num_experts", "dtype": "torch_dtype"}),
        ("tokenizer_config.json", {"extra_special_tokens": "additional_special_tokens"}),
    ):
        path = folder / file
        old: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        new = {names.get(key, key): value for key, value in old.items()}
        if "tokenizer_class" in new:
            new["tokenizer_class"] = "PreTrainedTokenizerFast"
        path.write_text(json.dumps(new, indent=2) + "\n", encoding="utf-8")


def export(trainer: Trainer, tokenizer: Tokenizer, out: Path) -> None:
    """Write the folder beside its place, then put it there: no reader ever sees half of it."""
    end = end_token(tokenizer)
    fresh = out.with_name(f".{out.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    model = stock_model(trainer, end)
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=end, do_sample=False)
    model.save_pretrained(fresh, max_shard_size=SHARD)
    wrap(tokenizer).save_pretrained(fresh)
    _use_published_names(fresh)
    facts = {
        "recipe": trainer.recipe.as_dict(),
        "steps": trainer.step,
        "seconds": round(trainer.seconds),
        "last_loss": round(sum(trainer.losses[-100:]) / 100, 4),
        "threads": torch.get_num_threads(),
    }
    (fresh / TRAINING).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    for path in fresh.iterdir():
        path.chmod(0o644)
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.rename(out, old)
    os.rename(fresh, out)
    shutil.rmtree(old, ignore_errors=True)
