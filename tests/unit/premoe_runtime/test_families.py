"""Families: names, shapes and routers by config; refusal of everything else by name."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
from support.checkpoints import CONFIGS, config
from support.tiny import tiny_config
from transformers.core_model_loading import revert_weight_conversion

from premoe_runtime.families import stock
from premoe_runtime.families.refused import REFUSED
from premoe_runtime.families.registry import FAMILIES, parse_config, read_model
from premoe_runtime.families.spec import MoeModel
from premoe_runtime.formats.errors import InvalidInput


def read(family: str = "qwen3_moe", **overrides: object) -> MoeModel:
    return read_with(overrides, family)


def read_with(overrides: Mapping[str, object], family: str = "qwen3_moe") -> MoeModel:
    return read_model(json.dumps(config(family, **overrides)).encode())


def test_the_families() -> None:
    assert set(CONFIGS) <= set(FAMILIES)
    assert not set(REFUSED) & set(FAMILIES)


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_names_and_shapes_are_those_that_transformers_saves(family: str) -> None:
    """The whole model through transformers' own conversion, experts included, against the spec's names."""
    model = read(family)
    spec, data = parse_config(json.dumps(config(family)).encode())
    built = stock.build(stock.stock_config(spec, data, "here"), "here")
    saved = revert_weight_conversion(built, built.state_dict())
    experts = {
        model.expert_name(layer, expert, one): one.shape
        for layer in range(len(model.blocks))
        for expert in range(model.num_experts)
        for one in model.expert_tensors
    }
    expected = experts | {name: one.shape for name, one in model.skeleton.items()}
    assert {name: tuple(tensor.shape) for name, tensor in saved.items()} == expected
    in_memory = {one.memory for one in model.skeleton.values()}
    fused = {model.fused_names(layer, one)[0] for layer in range(len(model.blocks)) for one in model.spec.fields}
    assert built.state_dict().keys() == in_memory | fused
    assert all(
        tuple(built.state_dict()[model.fused_names(0, one)[0]].shape) == model.fused_shape(0, one)
        for one in model.spec.fields
    )


@pytest.mark.parametrize(
    ("family", "gate", "up", "down"),
    [
        ("qwen3_moe", "mlp.experts.2.gate_proj", "mlp.experts.2.up_proj", "mlp.experts.2.down_proj"),
        ("qwen2_moe", "mlp.experts.2.gate_proj", "mlp.experts.2.up_proj", "mlp.experts.2.down_proj"),
        ("olmoe", "mlp.experts.2.gate_proj", "mlp.experts.2.up_proj", "mlp.experts.2.down_proj"),
        ("mixtral", "block_sparse_moe.experts.2.w1", "block_sparse_moe.experts.2.w3", "block_sparse_moe.experts.2.w2"),
    ],
)
def test_expert_names_and_their_place_in_the_blob(family: str, gate: str, up: str, down: str) -> None:
    model = read(family)
    inner = 24 if family.startswith("qwen") else 40
    assert model.shapes == {"gate_up": (2 * inner, 32), "down": (32, inner)}
    found = [
        (model.expert_name(1, 2, tensor), tensor.field, tensor.row, tensor.shape) for tensor in model.expert_tensors
    ]
    assert found == [
        (f"model.layers.1.{gate}.weight", "gate_up", 0, (inner, 32)),
        (f"model.layers.1.{up}.weight", "gate_up", inner, (inner, 32)),
        (f"model.layers.1.{down}.weight", "down", 0, (32, inner)),
    ]


@pytest.mark.parametrize(
    ("family", "overrides", "renormalise", "weights_dtype"),
    [
        ("qwen3_moe", {"norm_topk_prob": True}, True, "model"),
        ("qwen3_moe", {"norm_topk_prob": None}, False, "model"),
        ("qwen2_moe", {}, False, "model"),
        ("qwen2_moe", {"norm_topk_prob": True}, True, "model"),
        ("olmoe", {"norm_topk_prob": False}, False, "model"),
        ("olmoe", {"norm_topk_prob": True}, True, "model"),
        ("mixtral", {"norm_topk_prob": False}, True, "float32"),
    ],
)
def test_routers(family: str, overrides: dict[str, object], renormalise: bool, weights_dtype: str) -> None:
    router = read_with(overrides, family).router
    assert (router.score, router.renormalise, router.scale) == ("softmax", renormalise, 1.0)
    assert router.weights_dtype == weights_dtype


@pytest.mark.parametrize(
    ("overrides", "blocks"),
    [
        ({}, (0, 1, 2, 3, 4, 5)),
        ({"mlp_only_layers": None}, (0, 1, 2, 3, 4, 5)),
        ({"mlp_only_layers": [0, 4]}, (1, 2, 3, 5)),
        ({"decoder_sparse_step": 2}, (1, 3, 5)),
        ({"decoder_sparse_step": 2, "mlp_only_layers": [3]}, (1, 5)),
    ],
)
def test_dense_blocks_of_qwen3(overrides: dict[str, object], blocks: tuple[int, ...]) -> None:
    model = read_with({"num_hidden_layers": 6, **overrides})
    assert model.blocks == blocks
    for block in range(6):
        assert (f"model.layers.{block}.mlp.gate.weight" in model.skeleton) == (block in blocks)
        assert (f"model.layers.{block}.mlp.up_proj.weight" in model.skeleton) == (block not in blocks)
    assert model.expert_name(0, 3, model.expert_tensors[0]).startswith(f"model.layers.{blocks[0]}.mlp.experts.3.")


def test_a_model_without_moe_blocks_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no block is a MoE block"):
        read(mlp_only_layers=[0, 1, 2])


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "olmoe"])
@pytest.mark.parametrize("key", ["num_experts", "num_local_experts"])
def test_both_spellings_of_the_expert_count(family: str, key: str) -> None:
    values: dict[str, object] = {"num_experts": None, "num_local_experts": None, key: 7}
    assert read_with(values, family).num_experts == 7


@pytest.mark.parametrize(
    ("family", "ignored"),
    [
        ("qwen2_moe", {"num_local_experts": 60, "head_size": 3}),
        ("qwen3_moe", {"num_experts": 99, "num_local_experts": 6, "shared_expert_intermediate_size": 7}),
        ("olmoe", {"moe_intermediate_size": 1, "decoder_sparse_step": "none", "mlp_only_layers": "all"}),
        ("mixtral", {"norm_topk_prob": False, "attention_bias": True, "moe_intermediate_size": "x"}),
    ],
)
def test_keys_that_the_familys_own_class_ignores_change_nothing(family: str, ignored: dict[str, object]) -> None:
    assert read_with(ignored, family) == read(family)


def test_query_and_key_norms_differ_between_families() -> None:
    name = "model.layers.0.self_attn.k_norm.weight"
    assert read("qwen3_moe").skeleton[name].shape == (8,)
    assert read("olmoe").skeleton[name].shape == (16,)
    assert name not in read("mixtral").skeleton


def test_head_size_need_not_divide_the_hidden_size() -> None:
    skeleton = read("qwen3_moe", head_dim=10).skeleton
    assert skeleton["model.layers.0.self_attn.q_proj.weight"].shape == (40, 32)
    assert skeleton["model.layers.0.self_attn.o_proj.weight"].shape == (32, 40)


def test_attention_biases_exist_only_where_the_config_says_so() -> None:
    assert "model.layers.0.self_attn.q_proj.bias" not in read().skeleton
    assert read(attention_bias=True).skeleton["model.layers.0.self_attn.k_proj.bias"].shape == (16,)


def test_a_tied_head_may_be_absent() -> None:
    assert not read().skeleton["lm_head.weight"].optional
    assert read(tie_word_embeddings=True).skeleton["lm_head.weight"].optional


@pytest.mark.parametrize("model_type", ["llama", "kimi_k1", "", None, 3])
def test_unknown_families_are_refused_by_name(model_type: object) -> None:
    values = {**config(), "model_type": model_type}
    with pytest.raises(
        InvalidInput, match=r"supported families: deepseek_v2, .*mixtral, olmoe, phimoe, qwen2_moe, qwen3_moe"
    ) as error:
        read_model(json.dumps(values).encode(), "here/config.json")
    assert repr(model_type) in str(error.value)
    assert str(error.value).startswith("here/config.json: ")
    assert error.value.reason == "UNKNOWN_FAMILY"


@pytest.mark.parametrize("model_type", sorted(REFUSED))
def test_families_that_people_have_are_refused_with_the_reason(model_type: str) -> None:
    values = {**config(), "model_type": model_type, "auto_map": {"AutoConfig": "configuration.Config"}}
    with pytest.raises(InvalidInput) as error:
        read_model(json.dumps(values).encode())
    assert str(error.value) == f"config.json: models of type {model_type!r} cannot be packed: {REFUSED[model_type]}"
    assert error.value.reason == "UNKNOWN_FAMILY"


def deepseek(**overrides: object) -> MoeModel:
    values = tiny_config("deepseek_v3").to_dict() | overrides
    return read_model(json.dumps(values).encode())


def test_routers_of_groups_come_from_the_config() -> None:
    router = deepseek(n_group=8, topk_group=3).router
    assert (router.groups, router.chosen_groups, router.bias, router.scale) == (8, 3, True, 2.5)
    limited = tiny_config("deepseek_v2", topk_method="group_limited_greedy", n_group=2, topk_group=1).to_dict()
    assert read_model(json.dumps(limited).encode()).router.group_score == "max"
    greedy = read_model(json.dumps(limited | {"topk_method": "greedy"}).encode()).router
    assert (greedy.groups, greedy.renormalise) == (1, False)


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        ({"n_group": 3}, "16 experts do not make 3 equal groups"),
        ({"n_group": 16}, "16 experts do not make 16 equal groups .* of at least 2"),
        ({"topk_group": 5}, r"4 experts a token do not lie in 5 \(topk_group\) of 4 groups of 4"),
        ({"n_group": 8, "topk_group": 1}, r"4 experts a token do not lie in 1 \(topk_group\) of 8 groups of 2"),
        ({"n_group": 0}, "transformers refuses the config: .*groups"),
    ],
)
def test_groups_that_experts_do_not_fill_are_refused(overrides: dict[str, object], what: str) -> None:
    with pytest.raises(InvalidInput, match=what):
        deepseek(**overrides)


@pytest.mark.parametrize("method", ["noaux_tc", None])
def test_other_ways_of_deepseek_v2_to_choose_are_refused(method: str | None) -> None:
    values = tiny_config("deepseek_v2").to_dict() | {"topk_method": method}
    with pytest.raises(InvalidInput, match="neither greedy nor group_limited_greedy"):
        read_model(json.dumps(values).encode())


def test_layers_of_other_numbers_of_experts_take_their_biases_along() -> None:
    cut = deepseek(n_group=1, topk_group=1).cut_to((9, 16))
    assert cut.skeleton["model.layers.1.mlp.gate.e_score_correction_bias"].shape == (9,)
    assert cut.skeleton["model.layers.1.mlp.gate.weight"].shape == (9, 64)


def test_layers_whose_groups_would_be_uneven_are_refused() -> None:
    with pytest.raises(InvalidInput, match="9 experts do not make 4 equal groups"):
        deepseek().cut_to((9, 16))


def test_one_number_of_experts_a_token_for_all_layers() -> None:
    values = tiny_config("hunyuan_v1_moe").to_dict()
    assert read_model(json.dumps(values | {"moe_topk": [4, 4]}).encode()).top_k == 4
    with pytest.raises(InvalidInput, match="differs between layers"):
        read_model(json.dumps(values | {"moe_topk": [4, 2]}).encode())


def test_custom_code_is_refused_by_name() -> None:
    with pytest.raises(InvalidInput, match=r"AutoModelForCausalLM.*never run") as error:
        read(auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    assert error.value.reason == "REMOTE_CODE"


@pytest.mark.parametrize("family", sorted(name for name, spec in FAMILIES.items() if spec.ships_code))
def test_code_that_the_stock_class_replaces_is_ignored(family: str) -> None:
    values = tiny_config(family).to_dict()
    code = {"AutoConfig": "configuration.Config", "AutoModelForCausalLM": "modeling.Model"}
    plain, shipped = (read_model(json.dumps(values | extra).encode()) for extra in ({}, {"auto_map": code}))
    assert shipped == plain


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"hidden_size": "wide"}, "CONFIG_REFUSED"),
        ({"hidden_size": 10**30}, "CONFIG_REFUSED"),
        ({"num_hidden_layers": 0}, "CONFIG_INVALID"),
        ({"num_hidden_layers": 10**9}, "CONFIG_INVALID"),
        ({"num_experts": -1}, "CONFIG_INVALID"),
        ({"num_experts": 10**6}, "CONFIG_INVALID"),
        ({"mlp_only_layers": "all"}, "CONFIG_REFUSED"),
        ({"decoder_sparse_step": 0}, "CONFIG_REFUSED"),
        ({"num_attention_heads": 0}, "CONFIG_REFUSED"),
        ({"hidden_act": "nope"}, "CONFIG_REFUSED"),
        ({"rope_scaling": {"type": "nonsense", "factor": 2.0}}, "CONFIG_REFUSED"),
        ({"num_experts_per_tok": 99}, "CONFIG_INVALID"),
        ({"num_experts_per_tok": 0}, "CONFIG_INVALID"),
        ({"norm_topk_prob": "perhaps"}, "CONFIG_REFUSED"),
    ],
)
def test_configs_that_cannot_be_run_are_one_line(
    overrides: dict[str, object], reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InvalidInput, match=r"^config\.json: ") as error:
        read_with(overrides)
    assert error.value.reason == reason
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("rope", "context"),
    [
        (None, 64),
        ({"rope_type": "default"}, 64),
        ({"rope_type": "linear", "factor": 2.0}, 128),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 256),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 48}, 192),
        ({"rope_type": "yarn", "factor": 4.0}, 256),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16}, 64),
        (
            {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 16}
            | {"low_freq_factor": 1.0, "high_freq_factor": 4.0},
            64,
        ),
    ],
)
def test_rope_scaling_lengthens_the_context(rope: dict[str, object] | None, context: int) -> None:
    assert read(max_position_embeddings=64, rope_scaling=rope).context == context


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rope_that_depends_on_the_neighbours_in_a_batch_is_refused(kind: str) -> None:
    rope = {"rope_type": kind, "factor": 2.0, "original_max_position_embeddings": 32}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4} if kind == "longrope" else {}
    with pytest.raises(InvalidInput, match=f"rope type {kind} changes with the longest") as error:
        read(max_position_embeddings=64, rope_scaling=rope)
    assert error.value.reason == "ROPE_UNSUPPORTED"


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 100_000])
def test_a_config_that_is_no_json_object(text: bytes) -> None:
    with pytest.raises(InvalidInput, match=r"config.json is not (a )?JSON"):
        read_model(text)
