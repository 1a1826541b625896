"""What configs say of integer weights: read as tools write it, and refused in one line where it cannot be run."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.integers import compressed_config

from premoe_runtime.families.registry import read_model
from premoe_runtime.families.stored import as_configured, skeleton_bytes
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.numbers.registry import numbers_of, read_numbers
from premoe_runtime.numbers.spec import NumberFormat
from premoe_runtime.packs.layout import blob_layout

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
PACKED = compressed_config("pack-quantized", bits=4, group_size=32)
EXPERT = "model.layers.3.mlp.experts.0.gate_proj"


def changed(**weights: Any) -> dict[str, Any]:
    """``PACKED`` with other settings of its weights."""
    return compressed_config("pack-quantized", **{"bits": 4, "group_size": 32} | weights)


def numbers(config: dict[str, Any]) -> NumberFormat:
    found = read_numbers(config)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("config", "title"),
    [
        ({**GPTQ, "damp_percent": 0.01, "desc_act": False, "sym": True}, "GPTQ (4 bits, groups of 128)"),
        (
            {**GPTQ, "bits": 8, "group_size": -1, "checkpoint_format": "gptq_v2", "dynamic": {"-:.*gate": {}}},
            "GPTQ (8 bits, channels)",
        ),
        ({**AWQ, "version": "GEMM", "modules_to_not_convert": None}, "AWQ (4 bits, groups of 128)"),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64}, "AWQ (4 bits, groups of 64)"),
        (PACKED, "compressed-tensors (INT4 packed, groups of 32)"),
        (changed(bits=8, group_size=None), "compressed-tensors (INT8 packed, channels)"),
        (
            compressed_config("int-quantized", bits=8, group_size=None),
            "compressed-tensors (INT8 bytes, channels)",
        ),
        ({**PACKED, "format": "mixed-precision"}, "compressed-tensors (INT4 packed, groups of 32)"),
    ],
)
def test_configs_as_they_are_shipped(config: dict[str, Any], title: str) -> None:
    found = numbers(config)
    assert found.title == title
    assert numbers_of(found.spec).names("x.weight") == found.names("x.weight")
    assert found.converts(EXPERT)
    assert not found.converts("lm_head")


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({**GPTQ, "bits": 3}, "bits is 3: it should be 4 or 8"),
        ({**GPTQ, "bits": None}, "bits is None: it should be 4 or 8"),
        ({"quant_method": "gptq", "bits": 4}, "group_size is missing"),
        ({**GPTQ, "group_size": 0}, "group_size is 0: it should be a number of columns, or -1 for all of them"),
        ({**GPTQ, "group_size": "all"}, "group_size is 'all'"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'"),
        ({**GPTQ, "dynamic": {"+:.*experts.*": {"bits": 8}}}, "dynamic gives '+:.*experts.*' settings of its own"),
        ({**AWQ, "version": "gemv"}, "version is 'gemv': it should be 'gemm'"),
        ({**AWQ, "bits": 8}, "bits is 8: it should be 4"),
        ({**AWQ, "zero_point": False}, "zero_point is False: it should be True"),
        ({**AWQ, "modules_to_not_convert": "gate"}, "modules_to_not_convert is no list of names"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "config_groups is missing"),
        ({**PACKED, "config_groups": {}}, "config_groups is {}"),
        ({**PACKED, "format": "marlin-24"}, "format is 'marlin-24'"),
        ({**PACKED, "quantization_status": "frozen"}, "quantization_status is 'frozen'"),
        (changed(num_bits=3), "config_groups.group_0.weights.num_bits is 3: it should be 4 or 8"),
        (changed(type="float"), "config_groups.group_0.weights.type is 'float': it should be 'int'"),
        (changed(strategy="block"), "config_groups.group_0.weights.strategy is 'block'"),
        (changed(strategy="channel"), "strategy channel does not go with group_size 32"),
        (changed(format="nvfp4-pack-quantized"), "format 'nvfp4-pack-quantized' is not supported"),
        ({**PACKED, "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse weights (sparse-24-bitmask)"),
        ({**PACKED, "transform_config": {"config_groups": {"R1": {}}}}, "transform_config changes activations"),
        (
            {
                **PACKED,
                "config_groups": PACKED["config_groups"] | {"group_1": changed(bits=8)["config_groups"]["group_0"]},
            },
            "config_groups store weights in several ways",
        ),
        ({**PACKED, "ignore": ["re:(a+)+b"]}, "'re:(a+)+b' repeats a group"),
        ({**PACKED, "ignore": ["re:" + "a*" * 6]}, "repeats a group, or more than 5 times"),
        ({**PACKED, "ignore": ["re:["]}, "'re:[' is no pattern"),
    ],
)
def test_others_are_refused_in_one_line(config: dict[str, Any], what: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        read_numbers(config, "config.json")
    assert str(refused.value).startswith("config.json: quantization_config: ")
    assert what in str(refused.value)
    assert "\n" not in str(refused.value)
    assert refused.value.reason == "NUMBERS_UNSUPPORTED"


def test_patterns_say_what_is_left_alone() -> None:
    found = numbers(
        compressed_config(
            "pack-quantized",
            bits=4,
            group_size=32,
            ignore=("re:.*self_attn.*", "re:.*shared_experts.*", r"re:.*mlp\.(gate|up|gate_up|down)_proj.*", "model.x"),
        )
    )
    assert found.converts(EXPERT)
    for module in ("self_attn.q_proj", "mlp.shared_experts.up_proj", "mlp.gate_proj", "mlp.gate"):
        assert not found.converts(f"model.layers.3.{module}")
    assert not found.converts("model.x")
    only = numbers(
        {**PACKED, "config_groups": {"g": PACKED["config_groups"]["group_0"] | {"targets": ["re:.*attn.*"]}}}
    )
    assert only.converts("model.layers.3.self_attn.q_proj")
    assert not only.converts(EXPERT)


@pytest.mark.parametrize("config", [GPTQ, AWQ, PACKED])
def test_shapes_that_make_no_words_or_groups_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="which do not make words or groups of"):
        numbers(config).tensors("x.weight", (20, 100))


QWEN3_30B = {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "vocab_size": 151_936,
    "tie_word_embeddings": False,
}
KIMI_K2 = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "n_routed_experts": 384,
    "num_experts_per_tok": 8,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 2048,
    "intermediate_size": 18_432,
    "first_k_dense_replace": 1,
    "vocab_size": 163_840,
    "tie_word_embeddings": False,
}
KIMI = compressed_config(
    "pack-quantized",
    bits=4,
    group_size=32,
    ignore=("re:.*self_attn.*", "re:.*shared_experts.*", r"re:.*mlp\.(gate|up|gate_up|down)_proj.*"),
)


@pytest.mark.parametrize(
    ("config", "quantised", "gigabytes"), [(QWEN3_30B, GPTQ, 16.9), (KIMI_K2, KIMI, 594.0)], ids=["Qwen3", "Kimi-K2"]
)
def test_configs_alone_say_how_large_shipped_checkpoints_are(
    config: dict[str, Any], quantised: dict[str, Any], gigabytes: float
) -> None:
    model = read_model(json.dumps({**config, "quantization_config": quantised}).encode())
    experts = sum(model.layer_experts) * blob_layout(model, "BF16").blob_bytes
    assert (experts + skeleton_bytes(as_configured(model), "BF16")) / 1e9 == pytest.approx(gigabytes, rel=0.005)
