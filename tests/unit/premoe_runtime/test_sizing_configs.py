from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
from support.family_rows import TINY
from support.sources import MemorySource
from support.tiny import tiny_checkpoint, tiny_config

from premoe_runtime.formats.errors import CorruptData, InvalidInput
from premoe_runtime.offline.sizing.bill import PROCESS_BYTES, SizeRequest, size
from premoe_runtime.offline.sizing.configured import shape_of_config
from premoe_runtime.offline.sizing.devices import DEVICES, RESERVED_BYTES, device
from premoe_runtime.offline.sizing.shape import Shape, shape_of

CONFIGS = Path(__file__).parents[2] / "fixtures" / "configs"
GIB = 2**30


@cache
def shape_from(name: str, dtype: str | None = None) -> Shape:
    return shape_of_config((CONFIGS / f"{name}.json").read_bytes(), name, dtype)


def of(config: Mapping[str, Any], dtype: str | None = None) -> Shape:
    return shape_of_config(json.dumps(config).encode(), "config.json", dtype)


PANGU = json.loads((CONFIGS / "pangu-ultra-moe.json").read_text())
DENSE = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 9}
ENGINES: tuple[Literal["thread", "process"], ...] = ("thread", "process")

# What others published, the bytes that it says, and where. docs/sizing.md compares them with ours.
PUBLISHED = [
    ("pangu-ultra-moe", 64, 390e9, "PreMoe v1 (arXiv 2505.17639v1), abstract: 4/64"),
    ("qwen3-30b-a3b", 128, 56.93 * GIB, "llm-compressor, examples/reap_expert_pruning: whole"),
    ("qwen3-30b-a3b", 96, 43.43 * GIB, "the same: 25 % pruned"),
    ("qwen3-30b-a3b", 64, 29.92 * GIB, "the same: 50 % pruned"),
    ("gpt-oss-20b", 32, 12.8 * GIB, "GPT-OSS model card: checkpoint size"),
]


@pytest.mark.parametrize(("name", "kept", "published", "where"), PUBLISHED)
def test_published_memory_is_met_within_two_percent(name: str, kept: int, published: float, where: str) -> None:
    assert shape_from(name).weights_bytes(kept) == pytest.approx(published, rel=0.02), where


@pytest.mark.parametrize(
    ("name", "kept", "billions"),
    [
        # Of DeepSeek-R1 the papers print sizes in parameters; what was kept follows from them (method.md, 1.2).
        ("deepseek-r1", 256, 671.0),
        ("deepseek-r1", 128, 344.1),
        ("deepseek-r1", 64, 180.6),
        ("deepseek-r1", 32, 98.9),
        ("pangu-ultra-moe", 256, 718.0),
        ("gpt-oss-20b", 32, 20.9),
    ],
)
def test_published_parameters_are_met_within_half_a_percent(name: str, kept: int, billions: float) -> None:
    assert shape_from(name, "bf16").weights_bytes(kept) / 2 == pytest.approx(billions * 1e9, rel=0.005)


@pytest.mark.parametrize(
    ("dtype", "kept", "gigabytes"),
    [
        ("bf16", 128, 688.1),
        ("bf16", 64, 361.2),
        ("bf16", 32, 197.7),
        ("fp8", 128, 346.1),
        ("fp8", 64, 182.6),
        ("fp8", 32, 100.8),
        ("int4", 128, 180.4),
        ("int4", 64, 96.0),
        ("int4", 32, 53.9),
    ],
)
def test_what_deepseek_r1_takes_in_each_format(dtype: str, kept: int, gigabytes: float) -> None:
    """As docs/sizing.md prints it."""
    shape = shape_from("deepseek-r1", dtype)
    assert shape.weights_bytes(kept) / 1e9 == pytest.approx(gigabytes, abs=0.05)


def test_what_a_config_says_is_what_the_format_costs() -> None:
    """R1's shipped format is the usual FP8: every expert has one byte a weight and a scale for 128 x 128 of them."""
    stated, asked = shape_from("deepseek-r1"), shape_from("deepseek-r1", "fp8")
    assert (stated.blob_bytes, stated.stored_skeleton_bytes) == (asked.blob_bytes, asked.stored_skeleton_bytes)
    assert 0 <= stated.blob_bytes - (3 * 7168 * 2048 + 4 * 3 * 56 * 16) < 4096
    assert stated.slot_blob_bytes == 2 * 3 * 7168 * 2048
    assert (stated.held, stated.numbers) == ("bf16", "FP8 (e4m3, blocks of 128 x 128), the rest bf16")
    # Embedding, head, norms and routers are not packed.
    plain = shape_from("deepseek-r1", "bf16").stored_skeleton_bytes
    kept_wide = 2 * 129_280 * 7168 + 58 * 256 * 7168
    assert plain / 2 + kept_wide < stated.stored_skeleton_bytes < plain / 2 + 1.01 * kept_wide


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3", "gpt_oss", "granitemoe"])
def test_a_config_gives_what_its_pack_weighs(family: str, tmp_path: Path) -> None:
    source = MemorySource(tiny_checkpoint(tmp_path, family=family))
    manifest, config = source.manifest(), source.read_file("skeleton/config.json")
    packed, told = shape_of(manifest, config), shape_of_config(config, "config.json", "fp32")
    assert (told.blob_bytes, told.layer_experts) == (packed.blob_bytes, packed.layer_experts)
    assert told.kv_token_bytes == packed.kv_token_bytes
    # Shards have headers.
    assert packed.stored_skeleton_bytes * 0.9 <= told.stored_skeleton_bytes <= packed.stored_skeleton_bytes


@pytest.mark.parametrize("name", ["deepseek-r1", "pangu-ultra-moe"])
def test_a_model_without_a_class_is_counted_as_one_with_its_fields(name: str) -> None:
    """By hand: attention with latents, experts and a shared one, three dense layers, embedding and head."""
    data = json.loads((CONFIGS / f"{name}.json").read_text())
    shape = of({**data, "model_type": "somebodys_moe"}, "bf16")
    hidden, vocabulary = data["hidden_size"], data["vocab_size"]
    attention = hidden * 1536 + 1536 * 128 * 192 + hidden * 576 + 512 * 128 * 256 + 128 * 128 * hidden
    norms = 2 * hidden + 1536 + 512
    matrices = 61 * attention + 3 * 3 * hidden * 18_432 + 58 * (3 * hidden * 2048 + 256 * hidden)
    rest = 61 * norms + hidden + 58 * 256  # the correction bias of a router, which Pangu has not
    assert shape.skeleton_bytes == pytest.approx(2 * (matrices + 2 * vocabulary * hidden + rest), rel=1e-5)
    assert (shape.slot_blob_bytes, shape.layer_experts) == (2 * 3 * hidden * 2048, (256,) * 58)
    assert shape.kv_token_bytes == 2 * 61 * (512 + 64)
    assert shape.unserved == "model type 'somebodys_moe' is not one that can be packed"


def test_grouped_attention_without_a_class_too() -> None:
    data = json.loads((CONFIGS / "qwen3-30b-a3b.json").read_text())
    known, unknown = shape_from("qwen3-30b-a3b"), of({**data, "model_type": "somebodys_moe"})
    assert unknown.blob_bytes == known.blob_bytes
    assert unknown.skeleton_bytes == pytest.approx(known.skeleton_bytes, rel=1e-4)
    assert (unknown.kv_token_bytes, known.unserved) == (known.kv_token_bytes, "")


def test_pangu_has_two_names_for_its_fields() -> None:
    names = {
        "kv_lora_rank": "attention_kv_lora_dim",
        "q_lora_rank": "attention_q_lora_dim",
        "qk_nope_head_dim": "attention_qk_dim",
        "qk_rope_head_dim": "attention_qk_rope_dim",
        "v_head_dim": "attention_v_dim",
        "n_routed_experts": "num_routed_experts",
        "n_shared_experts": "num_shared_experts",
        "first_k_dense_replace": "num_dense_layers",
    }
    assert of({names.get(key, key): value for key, value in PANGU.items()}) == shape_from("pangu-ultra-moe")
    assert "code from a checkpoint is never run" in shape_from("pangu-ultra-moe").unserved


def test_blocks_with_state_keep_it_and_no_keys() -> None:
    shape = of({**tiny_config("qwen3_next").to_dict(), "dtype": "float32"})
    config = tiny_config("qwen3_next")
    stateful = config.layer_types.count("linear_attention")
    assert 0 < stateful < config.num_hidden_layers
    keeping = config.num_hidden_layers - stateful
    assert shape.kv_token_bytes == keeping * 2 * config.num_key_value_heads * config.head_dim * 4
    short, long = (size(shape, SizeRequest(memory=None, context=context, rows=3)) for context in (16, 64))
    assert short.state == long.state == 3 * shape.state_bytes > 0
    assert long.fits[0].total - short.fits[0].total == 3 * 48 * shape.context_token_bytes


def test_a_child_engine_has_a_prober_beside_it() -> None:
    shape = shape_from("qwen3-30b-a3b")
    # The embedding, the first block's attention and norms, and the first router.
    attention = 2048 * 128 * (2 * 32 + 2 * 4)
    assert shape.probed_bytes == 2 * (151_936 * 2048 + attention + 2 * 128 + 2 * 2048 + 128 * 2048)
    thread, process = (size(shape, SizeRequest(memory=None, engine=engine)) for engine in ENGINES)
    assert (thread.probed, process.probed) == (0, shape.probed_bytes)
    for one, other in zip(thread.fits, process.fits, strict=True):
        assert other.total - one.total == shape.probed_bytes
        assert other.host - one.host == PROCESS_BYTES


def test_devices_are_counted_by_memory() -> None:
    h200 = device("h200")
    room = h200.num_bytes - RESERVED_BYTES
    assert (h200.needed(1), h200.needed(room), h200.needed(room + 1)) == (1, 1, 2)
    assert device("rtx 4090").num_bytes < 24 * GIB
    assert all(device(one.name.upper()) is one for one in DEVICES)
    with pytest.raises(InvalidInput, match="is not known; give --memory, or one of T4, "):
        device("abacus")


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"quantization_config": {"quant_method": "hqq"}}, "quantised by 'hqq' cannot be packed"),
        ({"quantization_config": "fp8"}, "quantised by 'fp8' cannot be packed"),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128]}}, "weight_block_size"),
    ],
)
def test_number_formats_that_cannot_be_read_are_one_line(said: Mapping[str, Any], why: str) -> None:
    with pytest.raises(InvalidInput, match=why) as refusal:
        of({**PANGU, **said})
    assert "\n" not in str(refusal.value)
    assert of({**PANGU, **said}, "int4").numbers.startswith("compressed-tensors (INT4 packed")


def test_a_format_that_a_model_cannot_have_is_one_line() -> None:
    with pytest.raises(InvalidInput, match="stores its experts fused, for which FP8"):
        shape_from("gpt-oss-20b", "fp8")


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (DENSE, "a llama config without experts"),
        ({**DENSE, "model_type": "a\nb"}, "without experts"),
        ({}, "a None config without experts"),
        ({**PANGU, "n_routed_experts": 0}, "without experts"),
        ({**PANGU, "hidden_size": None}, r"config\.json\.hidden_size"),
        ({**PANGU, "hidden_size": -1}, r"config\.json\.hidden_size"),
        ({**PANGU, "hidden_size": 1 << 40}, r"config\.json\.hidden_size"),
        ({**PANGU, "num_hidden_layers": 10**9}, r"config\.json\.num_hidden_layers"),
        ({**PANGU, "moe_intermediate_size": "wide"}, r"config\.json\.moe_intermediate_size"),
        ({**PANGU, "num_experts_per_tok": 257}, "num_experts_per_tok 257 and 256 experts"),
        ({**PANGU, "first_k_dense_replace": 61}, "no block is a MoE block"),
        ({**PANGU, "mamba_d_state": 16}, "mamba_d_state: its blocks are not all attention and experts"),
        ({**PANGU, "moe_layer_freq": 2}, "moe_layer_freq: its blocks are not all"),
        (
            {**PANGU, "model_type": "deepseek_v4"},
            "a deepseek_v4 cannot be sized from its fields, nor served: ",
        ),
        ({**TINY["deepseek_v3"], "model_type": "deepseek_v3", "n_routed_experts": 15}, "groups"),
        ({**TINY["gpt_oss"], "model_type": "gpt_oss", "hidden_size": -4}, "config"),
        ({**TINY["gpt_oss"], "model_type": "gpt_oss", "num_hidden_layers": 10**6}, "is outside 1 to 1000"),
    ],
)
def test_configs_of_no_such_model_are_one_line(config: Mapping[str, Any], why: str) -> None:
    with pytest.raises((InvalidInput, CorruptData), match=why) as refusal:
        of(config)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("data", [b"{", b"[]", b"\xff", b"7"])
def test_what_is_no_config_is_one_line(data: bytes) -> None:
    with pytest.raises(InvalidInput, match=r"config\.json is not "):
        shape_of_config(data, "config.json")


def test_code_of_a_checkpoint_is_not_run() -> None:
    plain = tiny_config("qwen3_moe").to_dict()
    assert of({**plain, "auto_map": {"AutoModel": "evil.Model"}}) == of(plain)
