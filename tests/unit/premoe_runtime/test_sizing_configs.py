from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from support.family_rows import TINY
from support.tiny import tiny_checkpoint, tiny_config

from premoe_runtime.formats.errors import CorruptData, InvalidInput
from premoe_runtime.offline.sizing.bill import PROCESS_BYTES, SizeRequest, size
from premoe_runtime.offline.sizing.devices import DEVICES, RESERVED_BYTES, device
from premoe_runtime.offline.sizing.numbers import WHAT_IF, Numbers, stated_numbers, what_if
from premoe_runtime.offline.sizing.outline import Outline, outline_of
from premoe_runtime.offline.sizing.shape import outlined_shape, shape_of

CONFIGS = Path(__file__).parents[2] / "fixtures" / "configs"
GIB = 2**30
BF16 = Numbers("BF16")


@cache
def outline(name: str) -> Outline:
    return outline_of((CONFIGS / f"{name}.json").read_bytes(), name)


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
    found = outline(name)
    weights = outlined_shape(found, stated_numbers(found.data, name)).weights_bytes(kept)
    assert weights == pytest.approx(published, rel=0.02), where


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
    assert outlined_shape(outline(name), BF16).weights_bytes(kept) / 2 == pytest.approx(billions * 1e9, rel=0.005)


@pytest.mark.parametrize(
    ("dtype", "kept", "gigabytes"),
    [
        ("bf16", 128, 688.1),
        ("bf16", 64, 361.2),
        ("bf16", 32, 197.7),
        ("fp8", 128, 346.1),
        ("fp8", 64, 182.6),
        ("fp8", 32, 100.8),
        ("int4", 128, 180.3),
        ("int4", 64, 96.0),
        ("int4", 32, 53.9),
    ],
)
def test_what_deepseek_r1_takes_in_each_format(dtype: str, kept: int, gigabytes: float) -> None:
    """As docs/sizing.md prints it."""
    shape = outlined_shape(outline("deepseek-r1"), what_if(dtype, "BF16"))
    assert shape.weights_bytes(kept) / 1e9 == pytest.approx(gigabytes, abs=0.05)


def test_what_a_config_says_is_what_the_format_costs() -> None:
    """R1's shipped format is the usual FP8: every expert has one byte a weight and a scale for 128 x 128 of them."""
    found = outline("deepseek-r1")
    stated = outlined_shape(found, stated_numbers(found.data, "config.json"))
    asked = outlined_shape(found, what_if("fp8", "BF16"))
    assert (stated.blob_bytes, stated.stored_skeleton_bytes) == (asked.blob_bytes, asked.stored_skeleton_bytes)
    assert stated.blob_bytes == 3 * 7168 * 2048 + 4 * 3 * 56 * 16 + (4096 - 10_752 % 4096)
    assert stated.slot_blob_bytes == 2 * 3 * 7168 * 2048
    assert (stated.held, stated.numbers) == ("bf16", "fp8, scales of 128 x 128, the rest bf16")
    # Embedding, head, norms and routers are not packed.
    plain = outlined_shape(found, BF16)
    kept_wide = 2 * 129_280 * 7168 + 58 * 256 * 7168
    assert stated.stored_skeleton_bytes > plain.stored_skeleton_bytes / 2 + kept_wide
    assert stated.stored_skeleton_bytes < plain.stored_skeleton_bytes / 2 + 1.01 * kept_wide


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3", "gpt_oss", "granitemoe"])
def test_a_config_gives_what_its_pack_weighs(family: str, tmp_path: Path) -> None:
    from support.sources import MemorySource

    source = MemorySource(tiny_checkpoint(tmp_path, family=family))
    manifest, config = source.manifest(), source.read_file("skeleton/config.json")
    packed, guessed = shape_of(manifest, config), outlined_shape(outline_of(config, "config.json"), Numbers("F32"))
    assert (guessed.blob_bytes, guessed.layer_experts) == (packed.blob_bytes, packed.layer_experts)
    assert guessed.kv_token_bytes == packed.kv_token_bytes
    # Shards have headers.
    assert guessed.stored_skeleton_bytes == pytest.approx(packed.stored_skeleton_bytes, rel=0.1)
    assert guessed.stored_skeleton_bytes <= packed.stored_skeleton_bytes


def test_fields_alone_give_what_the_stock_class_gives() -> None:
    """A model without a class is worked out of its fields: tried on one that has a class."""
    stock = outlined_shape(outline("deepseek-r1"), BF16)
    data = json.loads((CONFIGS / "deepseek-r1.json").read_text())
    fields = outlined_shape(outline_of(json.dumps({**data, "model_type": "kimi_k2"}).encode(), "config.json"), BF16)
    assert fields.blob_bytes == stock.blob_bytes
    assert fields.layer_experts == stock.layer_experts
    assert (fields.kv_token_bytes, fields.activation_token_bytes) == (
        stock.kv_token_bytes,
        stock.activation_token_bytes,
    )
    assert fields.skeleton_bytes == pytest.approx(stock.skeleton_bytes, rel=0.0005)
    assert "DeepSeek-V3 with other numbers" in fields.unserved


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
    data = json.loads((CONFIGS / "pangu-ultra-moe.json").read_text())
    other = {names.get(key, key): value for key, value in data.items()}
    found = outline_of(json.dumps(other).encode(), "config.json")
    assert (found.skeleton, found.experts) == (outline("pangu-ultra-moe").skeleton, outline("pangu-ultra-moe").experts)
    assert "code from a checkpoint is never run" in found.unserved


def test_a_child_engine_has_a_prober_beside_it() -> None:
    found = outline("qwen3-30b-a3b")
    shape = outlined_shape(found, BF16)
    # The embedding, the first block's attention and norms, and the first router.
    attention = 2048 * 128 * (2 * 32 + 2 * 4)
    assert shape.probed_bytes == 2 * (151_936 * 2048 + attention + 2 * 128 + 2 * 2048 + 128 * 2048)
    thread, process = (size(shape, SizeRequest(memory=None, engine=engine)) for engine in ("thread", "process"))
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


def quantised(**said: object) -> dict[str, object]:
    return {"dtype": "float16", "quantization_config": said}


@pytest.mark.parametrize(
    ("said", "name", "parts"),
    [
        ({}, "bf16", None),
        ({"torch_dtype": "float32"}, "fp32", None),
        (
            quantised(quant_method="fp8", weight_block_size=[64, 128]),
            "fp8, scales of 64 x 128, the rest fp16",
            (65_536, 32),
        ),
        (quantised(quant_method="fp8"), "fp8, scales of whole weights, the rest fp16", (65_536, 4)),
        (quantised(quant_method="mxfp4"), "mxfp4, all but experts fp16", (32_768, 2048)),
        (
            quantised(quant_method="awq", bits=4, group_size=128, zero_point=True),
            "awq int4, scales of groups of 128, the rest fp16",
            (32_768, 1024, 256),
        ),
        (
            quantised(quant_method="gptq", bits=4, group_size=-1),
            "gptq int4, scales of rows, the rest fp16",
            (32_768, 512, 128, 1024),
        ),
        (
            quantised(
                quant_method="compressed-tensors",
                config_groups={"a": {"weights": {"num_bits": 8, "type": "int", "strategy": "channel"}}},
            ),
            "int8, scales of each channel, the rest fp16",
            (65_536, 512),
        ),
        (
            quantised(
                quant_method="compressed-tensors",
                config_groups={"a": {"weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}}},
            ),
            "int4, scales of groups of 32, the rest fp16",
            (32_768, 4096),
        ),
    ],
)
def test_number_formats_that_configs_state(said: Mapping[str, Any], name: str, parts: tuple[int, ...] | None) -> None:
    numbers = stated_numbers(said, "config.json")
    assert numbers.name == name
    assert (None if numbers.packed is None else numbers.packed.parts(256, 256)) == parts


def test_modules_that_stay_wide() -> None:
    numbers = Numbers("BF16", WHAT_IF["int4"], wide=("lm_head", "re:.*mlp[.]gate$", "layers.0."))
    assert numbers.of("model.layers.1.mlp.down_proj.weight") is WHAT_IF["int4"]
    for name in ("lm_head.weight", "model.layers.1.mlp.gate.weight", "model.layers.0.mlp.down_proj.weight"):
        assert numbers.of(name) is None


@pytest.mark.parametrize(
    "said",
    [
        {"dtype": "int3"},
        {"quantization_config": "fp8"},
        quantised(quant_method="hqq"),
        quantised(quant_method="fp8", weight_block_size=[128]),
        quantised(quant_method="fp8", weight_block_size=7),
        quantised(quant_method="awq", bits="four", group_size=128),
        quantised(quant_method="awq", bits=0, group_size=128),
        quantised(quant_method="gptq", bits=4),
        quantised(quant_method="compressed-tensors", config_groups={}),
        quantised(quant_method="compressed-tensors", config_groups=[1]),
        quantised(
            quant_method="compressed-tensors",
            config_groups={"a": {"weights": {"num_bits": 8}}, "b": {"weights": {"num_bits": 4}}},
        ),
    ],
)
def test_number_formats_that_nobody_knows_are_refused(said: Mapping[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=r"^config\.json: .* is not known; say with --dtype") as refusal:
        stated_numbers(said, "config.json")
    assert refusal.value.reason == "NUMBERS_UNKNOWN"


PANGU = json.loads((CONFIGS / "pangu-ultra-moe.json").read_text())
DENSE = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 9}


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
        ({**PANGU, "num_experts_per_tok": 257}, "257 of 256 experts a token"),
        ({**PANGU, "first_k_dense_replace": 61}, "61 dense of 61 layers"),
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
        outlined_shape(outline_of(json.dumps(config).encode(), "config.json"), BF16)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("data", [b"{", b"[]", b"\xff", b"7"])
def test_what_is_no_config_is_one_line(data: bytes) -> None:
    with pytest.raises(InvalidInput, match=r"config\.json is not "):
        outline_of(data, "config.json")


def test_the_outline_of_a_family_reads_no_code_of_the_checkpoint() -> None:
    config = {**tiny_config("qwen3_moe").to_dict(), "auto_map": {"AutoModel": "evil.Model"}}
    assert outline_of(json.dumps(config).encode(), "config.json").family == "qwen3_moe"
