"""llama.cpp with the weights of ``throughput``'s random checkpoint: a program for an environment of its own.

    .venv-llama/bin/python benchmarks/_llama.py CHECKPOINT THREADS

Writes CHECKPOINT/model.gguf, answers a line once it is loaded, and then to each line ``[batch, prompt_tokens,
answer_tokens]`` one with ``[prefill, decode]``: seconds until all of the batch have their first token, and seconds a
token after that. Many sequences are decoded by ``llama_decode`` itself, which the package's own classes do not do.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import numpy.typing as npt
from safetensors import safe_open

SEQUENCES, CONTEXT, STEP_TOKENS = 32, 1024, 1024
Numbers = npt.NDArray[np.float32]
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate": "ffn_gate_inp",
}
"""Of transformers' tensors, without the block's number; a block's experts are stacked apart."""


def convert(checkpoint: Path, target: Path) -> None:
    """Write a float32 checkpoint of transformers' Qwen3-MoE as GGUF, without a tokenizer."""
    config = json.loads((checkpoint / "config.json").read_text())
    tensors = dict(_tensors(checkpoint))
    writer = gguf.GGUFWriter(target, "qwen3moe")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_expert_count(config["num_local_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("none")
    for block in range(config["num_hidden_layers"]):
        for part in ("gate", "up", "down"):
            names = [
                f"model.layers.{block}.mlp.experts.{e}.{part}_proj.weight" for e in range(config["num_local_experts"])
            ]
            writer.add_tensor(f"blk.{block}.ffn_{part}_exps.weight", np.stack([tensors.pop(name) for name in names]))
    for name, tensor in tensors.items():
        writer.add_tensor(_renamed(name), tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(checkpoint: Path) -> Iterator[tuple[str, Numbers]]:
    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                yield name, file.get_tensor(name)


def _renamed(name: str) -> str:
    stem = name.removesuffix(".weight")
    if not stem.startswith("model.layers."):
        return f"{NAMES[stem]}.weight"
    block, _, rest = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{block}.{NAMES[rest]}.weight"


class Llama:
    """A loaded model. Raises RuntimeError where llama.cpp refuses."""

    def __init__(self, path: Path, threads: int) -> None:
        self._silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(bytes(path), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max = SEQUENCES * CONTEXT, SEQUENCES
        params.n_batch = params.n_ubatch = STEP_TOKENS
        params.n_threads = params.n_threads_batch = threads
        self._context = self._model and llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(STEP_TOKENS, 0, 1)
        self._random = np.random.default_rng(0)

    def run(self, batch: int, prompt_tokens: int, answer_tokens: int) -> tuple[float, float]:
        prompts = self._random.integers(0, self._vocabulary, (batch, prompt_tokens)).tolist()
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        sent = time.perf_counter()
        chosen = self.step(prompts, 0)
        began = time.perf_counter()
        for place in range(prompt_tokens, prompt_tokens + answer_tokens - 1):
            chosen = self.step([[token] for token in chosen], place)
        decoded = batch * (answer_tokens - 1)
        return began - sent, (time.perf_counter() - began) / decoded if decoded else 0.0

    def step(self, tokens: Sequence[Sequence[int]], place: int) -> list[int]:
        """The likeliest next token of each sequence, after ``tokens`` of it from ``place`` on."""
        batch, count, last = self._batch, 0, []
        for sequence, own in enumerate(tokens):
            for offset, token in enumerate(own):
                batch.token[count], batch.pos[count] = token, place + offset
                batch.n_seq_id[count], batch.seq_id[count][0] = 1, sequence
                batch.logits[count] = offset == len(own) - 1
                count += 1
            last.append(count - 1)
        batch.n_tokens = count
        if code := llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode answered {code}")
        rows = (llama_cpp.llama_get_logits_ith(self._context, index) for index in last)
        return [int(np.ctypeslib.as_array(row, (self._vocabulary,)).argmax()) for row in rows]


def main() -> None:
    """Answer lines until there are no more."""
    checkpoint, threads = Path(sys.argv[1]), int(sys.argv[2])
    path = checkpoint / "model.gguf"
    convert(checkpoint, path)
    llama = Llama(path, threads)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        print(json.dumps(llama.run(*json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
