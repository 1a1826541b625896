"""Engines of the script for GPUs, and what is checked of them, each in a process of its own."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _peers import Speed
from support import vllm_engines
from support.exports import PROMPTS, pack_of, restricted_logits
from support.oracle import masked_selection, random_kept, stock_logits
from support.tiny import tiny_checkpoint
from throughput import Served
from transformers import AutoModelForCausalLM

from premoe_runtime.packs.reader import PackReader, open_pack
from premoe_runtime.residency.host_arena import HostArena
from premoe_runtime.residency.slot_shape import SlotShape
from premoe_runtime.serving.front import Front
from premoe_runtime.serving.requests import KeptPattern

BATCHES, CONTEXT = (1, 32), 512
GPU_SHARE = 0.3
"""Of a GPU's memory, for each of two engines of vLLM."""
SPOILT = 16


class Setting(NamedTuple):
    """Of one engine. ``kept``: experts a layer of the pattern that runs; ``host``: blobs in host memory."""

    pack: str
    engine: str
    device: str
    graphs: bool = False
    slots: int = 0
    kept: int = 0
    host: int = 0


def by_front(setting: Setting) -> Callable[..., Speed]:
    """An engine behind the serving front; the last argument says whether patterns are swapped in all the time."""
    engine, shape, arena, source = engine_of(setting)
    served = Served(Front(engine, shape, arena, source), shape)
    served.pattern, *others = (
        KeptPattern(f"pattern {number}", served.order // setting.kept == number)
        for number in range(min(3, shape.manifest.num_experts // setting.kept))
    )

    def run(batch: int, prompt_tokens: int, answer_tokens: int, swapping: bool) -> Speed:
        stop = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            swaps = pool.submit(_swap, served.front, others, stop) if swapping else None
            try:
                found = served.run(batch, prompt_tokens, answer_tokens)
            finally:
                stop.set()
        return Speed(found.prefill, found.decode, 0 if swaps is None else swaps.result())

    return run


def _swap(front: Front, patterns: Sequence[KeptPattern], stop: threading.Event) -> int:
    """Bring one in after another until it is told to stop. Returns how many came."""
    count = 0
    while not stop.is_set():
        pattern = patterns[count % len(patterns)]
        front.load_pattern(pattern)
        front.unload_pattern(pattern.id)
        count += 1
    return count


def engine_of(setting: Setting) -> tuple[Any, SlotShape, HostArena, PackReader]:
    """With the shape of its slots, its host memory and its source."""
    source = open_pack(setting.pack)
    if setting.engine == "hf":
        from premoe_runtime.engines.hf.engine import HfEngine
        from premoe_runtime.engines.hf.model import load_slot_model

        model = load_slot_model(source, slots=setting.slots, device=setting.device)
        shape = model.store.shape
        arena = HostArena(shape.blob_bytes, setting.host * shape.blob_bytes)
        return HfEngine(model, arena, max_sequences=max(BATCHES), context=CONTEXT), shape, arena, source
    from premoe_runtime.engines.vllm.engine import VllmEngine

    shape = SlotShape.as_stored(source.manifest(), slots=setting.slots)
    arena = HostArena(shape.blob_bytes, setting.host * shape.blob_bytes)
    given: dict[str, Any] = {"enforce_eager": not setting.graphs}
    if setting.device == "cpu":
        given["block_size"] = 32
    else:
        given["gpu_memory_utilization"] = GPU_SHARE
    if setting.graphs:
        given["compilation_config"] = {"cudagraph_capture_sizes": list(BATCHES)}
    engine = VllmEngine(
        source, shape, arena, max_sequences=max(BATCHES), context=CONTEXT, device=setting.device, given=given
    )
    return engine, shape, arena, source


def wiped(setting: Setting) -> str:
    """Fill all keys and values with what is no number, and have some blocks wiped that were spoilt."""
    engine = engine_of(setting)[0]
    core = engine._core
    layers = core._runner.compilation_config.static_forward_context.values()
    caches = [cache for layer in layers if isinstance(cache := getattr(layer, "kv_cache", None), torch.Tensor)]
    for cache in caches:
        cache.fill_(float("nan"))
    blocks, spoilt = core.blocks + 1, min(SPOILT, core.blocks)
    core._blocks._blocks = set(range(1, 1 + spoilt))
    core._blocks.wipe()
    for cache in caches:
        left, gone = int(cache.isnan().sum()), int((cache == 0).sum())
        if gone * blocks != cache.numel() * spoilt or left + gone != cache.numel():
            return f"WRONG: {gone} of {cache.numel()} numbers were wiped, of {spoilt} of {blocks} blocks"
    engine.close()
    return f"{spoilt} of {blocks} blocks in {len(caches)} layers, and no other"


class Agreement(NamedTuple):
    """Largest difference of log probabilities after the same tokens, and the share of tokens that are alike."""

    difference: float
    alike: float


def small_model(folder: Path, device: str) -> Path:
    """A random checkpoint of sizes that kernels for GPUs take, in the arithmetic that they are made for."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    sizes: dict[str, Any] = {"hidden_size": 256, "moe_intermediate_size": 128, "head_dim": 64}
    return tiny_checkpoint(folder, "qwen3_moe", dtype, num_attention_heads=4, num_key_value_heads=2, **sizes)


def exact_hf(device: str) -> Agreement:
    """Slots against the stock class masked from outside, on the same prompts."""
    with tempfile.TemporaryDirectory() as name:
        checkpoint = small_model(Path(name), device)
        source = pack_of(checkpoint, Path(name, "store"))
        manifest, prompts = source.manifest(), PROMPTS.to(device)
        kept = random_kept(1, manifest.num_layers, manifest.num_experts, manifest.num_experts // 2)
        found = restricted_logits(source, kept[0].numpy(), manifest.top_k, prompts=prompts, device=device)
        stock = AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype="auto", experts_implementation="grouped_mm", trust_remote_code=False
        )
    rows = torch.zeros(prompts.numel(), dtype=torch.int64, device=device)
    with masked_selection(kept.to(device), rows):
        expected = stock_logits(stock.eval().to(device), prompts)
    ours, theirs = found.float().log_softmax(-1), expected.float().log_softmax(-1)
    alike = (ours.argmax(-1) == theirs.argmax(-1)).float().mean()
    return Agreement(float((ours - theirs).abs().max()), float(alike))


def exact_vllm(device: str) -> Agreement:
    """Slots against unchanged vLLM masked from outside: greedy tokens and the likeliest at every place."""
    with tempfile.TemporaryDirectory() as name:
        checkpoint = small_model(Path(name), device)
        source = pack_of(checkpoint, Path(name, "store"))
        manifest, asked = source.manifest(), PROMPTS.tolist()
        half = manifest.num_experts // 2
        kept = random_kept(1, manifest.num_layers, manifest.num_experts, half)[0]
        row = [layer.nonzero().flatten().tolist() for layer in kept]
        requests = [vllm_engines.Request(tokens, 1) for tokens in asked]
        stages = [vllm_engines.bring({1: row}), vllm_engines.generate(requests)]
        dtype = str(json.loads((checkpoint / "config.json").read_text())["dtype"])
        jobs = {
            "slots": vllm_engines.slots(source.url, half, stages, dtype=dtype),
            "stock": vllm_engines.stock(checkpoint, [(row, asked)], dtype=dtype),
        }
        found = vllm_engines.run(jobs)
    pairs = list(zip(found["slots"][1], found["stock"][0].answers, strict=True))
    return Agreement(
        max(difference(mine, its) for mine, its in pairs),
        sum(mine.tokens == its.tokens for mine, its in pairs) / len(pairs),
    )


def difference(mine: vllm_engines.Answer, its: vllm_engines.Answer) -> float:
    """At every place behind the same tokens, of those that both list."""
    same = next((at for at, pair in enumerate(zip(mine.tokens, its.tokens, strict=True)) if pair[0] != pair[1]), None)
    places = zip(mine.logprobs[: None if same is None else same + 1], its.logprobs, strict=False)
    return max(abs(one[token] - other[token]) for one, other in places for token in one.keys() & other.keys())
