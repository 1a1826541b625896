"""What is decided about an engine on vLLM before vLLM is asked: versions, models, arguments, the plan of the slots."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.sources import MemorySource
from support.tiny import prune, tiny_checkpoint

from premoe_runtime.engines.vllm import compat
from premoe_runtime.engines.vllm.arguments import arguments, check_given, engine_arguments
from premoe_runtime.engines.vllm.compat import NEEDED, SECOND_RUNNER, Needed
from premoe_runtime.engines.vllm.coverage import FAMILIES as COVERED
from premoe_runtime.engines.vllm.coverage import check_covered, is_grouped, model_fault, stock_router_fault
from premoe_runtime.engines.vllm.plan import SlotPlan, plan_in
from premoe_runtime.families.registry import FAMILIES as KNOWN
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.manifest import Manifest, NumberSpec

PLAN = SlotPlan(pack="file:///pack", slots=(6, 4), blocks=(0, 2), rows=8)


def manifest(folder: Path, family: str = "qwen3_moe", **overrides: Any) -> Manifest:
    return MemorySource(tiny_checkpoint(folder, family, **overrides)).manifest()


def refusal(caught: pytest.ExceptionInfo[InvalidInput]) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


def everything(needed: Needed) -> object:
    return needed


def test_a_whole_vllm_of_a_tried_version_is_taken() -> None:
    compat.check("0.32.0", find=everything)
    compat.check("0.32.1+cpu", find=everything)


@pytest.mark.parametrize("installed", ["0.31.9", "0.33.0", "1.32.0", "0.320.1"])
def test_another_version_is_refused_by_name(installed: str) -> None:
    with pytest.raises(InvalidInput, match=r"tried with 0\.32\.x") as caught:
        compat.check(installed, find=everything)
    assert installed in refusal(caught)
    assert caught.value.reason == "VLLM_UNSUPPORTED"


def test_without_vllm_the_extra_is_named() -> None:
    with pytest.raises(InvalidInput, match="extra 'vllm'") as caught:
        compat.check(None)
    assert caught.value.reason == "VLLM_MISSING"


def test_what_a_vllm_lacks_is_named_with_its_use() -> None:
    gone = {"_prepare_inputs", "create_weights"}

    def find(needed: Needed) -> object:
        if needed.path.split(".")[-1] in gone:
            raise AttributeError(needed.path)
        return needed

    with pytest.raises(InvalidInput) as caught:
        compat.check("0.32.0", find=find)
    text = refusal(caught)
    assert "gpu_model_runner.GPUModelRunner._prepare_inputs (rows of tokens)" in text
    assert "fused_moe_method_base.FusedMoEMethodBase.create_weights (swaps)" in text
    assert "load_model" not in text


def test_names_are_looked_up_where_they_are_said_to_be() -> None:
    there = Needed("pathlib", "Path.write_text", "tests")
    gone = [Needed("pathlib", "Path.write_nothing", "tests"), Needed("no_such_module_at_all", "name", "tests")]
    assert compat.missing([there, *gone]) == gone
    assert compat.find(there) is Path.write_text


def test_every_name_is_vllm_s_own_and_said_once() -> None:
    names = [(one.module, one.path) for one in (*NEEDED, *SECOND_RUNNER)]
    assert len(set(names)) == len(names)
    assert all(module.startswith("vllm.") for module, _ in names)


@pytest.mark.parametrize("family", COVERED)
def test_families_held_against_vllm_are_covered(tmp_path: Path, family: str) -> None:
    found = manifest(tmp_path, family, **({"router_jitter_noise": 0.01} if family == "phimoe" else {}))
    check_covered(found)
    plan = SlotPlan.of(found, [3, 40], pack="file:///here", rows=5)
    # No layer has more slots than experts.
    blocks = tuple(layer.block for layer in found.layers)
    assert (plan.slots, plan.blocks, plan.rows, plan.pack) == ((3, 16), blocks, 5, "file:///here")


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("phimoe", "jitter of 0.2, and vLLM's function 0.01"),
        ("flex_olmo", "no model of its own"),
        ("hunyuan_v1_moe", "no model of its own"),
        ("minimax", "took its model out in 0.23"),
    ],
)
def test_other_families_are_refused_with_the_reason(tmp_path: Path, family: str, why: str) -> None:
    with pytest.raises(InvalidInput, match=why) as caught:
        SlotPlan.of(manifest(tmp_path, family), 4, pack="file:///pack")
    assert family in refusal(caught)
    assert caught.value.reason == "ENGINE_UNSUPPORTED"


def test_every_known_family_is_either_covered_or_refused(tmp_path: Path) -> None:
    base = manifest(tmp_path)
    for name in set(KNOWN) - set(COVERED):
        with pytest.raises(InvalidInput, match=name):
            check_covered(base.model_copy(update={"family": name}))


def test_layers_of_different_widths_are_refused(tmp_path: Path) -> None:
    folder = prune(tiny_checkpoint(tmp_path), (16, 9))
    with pytest.raises(InvalidInput, match="different numbers of experts"):
        check_covered(MemorySource(folder).manifest())


@pytest.mark.parametrize(
    "held",
    [
        {"method": "fp8", "block": (128, 128)},
        {"method": "mxfp4", "block": (1, 32)},
        {"method": "compressed-tensors", "block": (1, 128), "bits": 4, "packed": True},
        {"method": "compressed-tensors", "block": (1, 0), "bits": 8},
        {"method": "gptq", "block": (1, 32), "bits": 4, "zeros_less": 1},
        {"method": "awq", "block": (1, 64), "bits": 4},
    ],
    ids=lambda given: given["method"],
)
def test_number_formats_held_against_vllm_are_covered(tmp_path: Path, held: dict[str, Any]) -> None:
    check_covered(manifest(tmp_path).model_copy(update={"numbers": NumberSpec(**held)}))


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"method": "fp8", "block": (64, 64)}, "only blocks of 128 x 128"),
        ({"method": "compressed-tensors", "block": (1, 32), "bits": 4, "packed": True}, "another size than 32"),
        ({"method": "compressed-tensors", "block": (1, 128), "bits": 8, "packed": True}, "INT8 by channel"),
        (
            {"method": "compressed-tensors", "block": (1, 128), "bits": 4, "packed": True, "symmetric": False},
            "symmetric INT4",
        ),
        ({"method": "compressed-tensors", "block": (1, 128), "bits": 8}, "INT8 by channel"),
        ({"method": "gptq", "block": (1, 128), "bits": 8}, "4 bits in groups"),
        ({"method": "awq", "block": (1, 0), "bits": 4}, "4 bits in groups"),
    ],
)
def test_other_number_formats_are_refused_with_the_reason(tmp_path: Path, other: dict[str, Any], why: str) -> None:
    found = manifest(tmp_path).model_copy(update={"numbers": NumberSpec(**other)})
    with pytest.raises(InvalidInput, match=why) as caught:
        check_covered(found)
    assert "kernels for CPUs" in refusal(caught)


def test_a_model_that_is_not_the_pack_s_is_found_out() -> None:
    own = "vllm.model_executor.models.gpt_oss"
    assert model_fault(own, SimpleNamespace()) is None
    assert model_fault(own, SimpleNamespace(swiglu_limit=7.0)) is None
    assert "swiglu_limit of 2.0" in str(model_fault(own, SimpleNamespace(swiglu_limit=2.0)))
    named = SimpleNamespace(architectures=["PhimoeForCausalLM"])
    assert "PhimoeForCausalLM" in str(model_fault("vllm.model_executor.models.transformers.moe", named))


def test_a_stock_router_that_computes_otherwise_is_found_out(tmp_path: Path) -> None:
    found = manifest(tmp_path)
    same = {"top_k": 4, "global_num_experts": 16, "renormalize": True, "scoring_func": "softmax"}
    assert stock_router_fault(SimpleNamespace(**same), found) is None
    others = {"top_k": 5, "renormalize": False, "scoring_func": "sigmoid", "num_expert_group": 4}
    for name, value in {**others, "routed_scaling_factor": 2.0}.items():
        assert name in str(stock_router_fault(SimpleNamespace(**{**same, name: value}), found))
    biased = SimpleNamespace(**same, e_score_correction_bias=[0.0])
    assert "correction bias" in str(stock_router_fault(biased, found))
    own = SimpleNamespace(**same, custom_routing_function=print)
    assert "function of the model's own" in str(stock_router_fault(own, found))


def test_a_stock_router_with_groups(tmp_path: Path) -> None:
    found = manifest(tmp_path, "glm4_moe", n_group=4, topk_group=2)
    same = {"top_k": 4, "scoring_func": "sigmoid", "use_grouped_topk": True, "num_expert_group": 4, "topk_group": 2}
    biased = {**same, "e_score_correction_bias": [0.0]}
    assert stock_router_fault(SimpleNamespace(**biased), found) is None
    assert "bias" in str(stock_router_fault(SimpleNamespace(**same), found))
    for name, value in {"scoring_func": "softmax", "num_expert_group": 1, "topk_group": 3}.items():
        assert name in str(stock_router_fault(SimpleNamespace(**{**biased, name: value}), found))
    assert "knows no groups" in str(stock_router_fault(SimpleNamespace(**{**biased, "use_grouped_topk": False}), found))


def test_routers_of_groups_are_known_by_what_they_say_or_have() -> None:
    assert is_grouped(SimpleNamespace(use_grouped_topk=True))
    assert is_grouped(SimpleNamespace(num_expert_group=1))
    assert not is_grouped(SimpleNamespace(use_grouped_topk=False, num_expert_group=None))
    assert not is_grouped(SimpleNamespace(top_k=4))


def test_the_plan_comes_through_vllm_s_configuration() -> None:
    assert plan_in(PLAN.config()) == PLAN
    assert plan_in({"other": 1}) is None
    assert plan_in(None) is None
    assert [PLAN.layer_of(block) for block in (0, 2)] == [0, 1]
    with pytest.raises(InvalidInput, match="block 1"):
        PLAN.layer_of(1)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"slots": [1, 4]}, "slots"),
        ({"rows": 0}, "rows"),
        ({"pack": ""}, "pack"),
        ({"row": 3}, "row"),
        ({"blocks": ["x"]}, "blocks"),
    ],
)
def test_a_plan_that_does_not_hold_is_one_line(change: dict[str, Any], where: str) -> None:
    with pytest.raises(InvalidInput, match=f"premoe.{where}") as caught:
        plan_in({"premoe": {**PLAN.model_dump(mode="json"), **change}})
    refusal(caught)


def test_arguments_of_an_engine() -> None:
    made = arguments(Path("skeleton"), PLAN, {"dtype": "float32", "enable_lora": False, "tensor_parallel_size": 1})
    assert made["model"] == "skeleton"
    assert made["load_format"] == "premoe"
    assert made["dtype"] == "float32"
    # On by default in vLLM.
    assert made["enable_prefix_caching"] is False
    assert plan_in(made["additional_config"]) == PLAN


def test_arguments_of_the_engine_behind_the_port() -> None:
    settings: dict[str, Any] = {"dtype": "bfloat16", "context": 128, "max_sequences": 4, "prefill_tokens": 32}
    made = engine_arguments(Path("skeleton"), PLAN, {"enforce_eager": False, "block_size": 32}, **settings)
    assert (made["enforce_eager"], made["block_size"], made["enable_prefix_caching"]) == (False, 32, True)
    assert (made["max_model_len"], made["max_num_seqs"], made["max_num_batched_tokens"]) == (128, 4, 36)
    assert (
        engine_arguments(Path("skeleton"), PLAN, {"enable_prefix_caching": False}, **settings)["enable_prefix_caching"]
        is False
    )


def test_several_devices_have_whole_experts_and_processes_of_the_engine_s_own() -> None:
    settings: dict[str, Any] = {"dtype": "bfloat16", "context": 128, "max_sequences": 4, "prefill_tokens": 32}
    made = engine_arguments(Path("skeleton"), PLAN, {"tensor_parallel_size": 2}, **settings)
    assert (made["enable_expert_parallel"], made["distributed_executor_backend"]) == (True, "external_launcher")
    alone = engine_arguments(Path("skeleton"), PLAN, {}, **settings)
    assert not alone["enable_expert_parallel"]
    assert "distributed_executor_backend" not in alone
    # By the plug-in alone they are vLLM's to start.
    given = {"tensor_parallel_size": 2, "distributed_executor_backend": "ray"}
    of_ray = arguments(Path("skeleton"), PLAN, given)
    assert (of_ray["enable_expert_parallel"], of_ray["distributed_executor_backend"]) == (True, "ray")


@pytest.mark.parametrize(
    "given",
    [{"max_model_len": 64}, {"model": "x"}, {"async_scheduling": True}, {"enable_lora": True}, {"dtype": "half"}],
)
def test_arguments_that_settings_decide_are_refused_behind_the_port(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(given))) as caught:
        check_given(given)
    refusal(caught)
    assert caught.value.reason == "ENGINE_ARGUMENT"


@pytest.mark.parametrize(
    "given",
    [
        {"quantization": "fp8"},
        {"enable_eplb": True},
        {"enable_expert_parallel": True},
        {"tensor_parallel_size": 0},
        {"tensor_parallel_size": "two"},
        {"pipeline_parallel_size": 2},
        {"data_parallel_size": 2},
        {"enable_lora": True},
        {"speculative_config": {"method": "ngram"}},
        {"trust_remote_code": True},
        {"cpu_offload_gb": 1},
        {"enable_prefix_caching": True},
        {"load_format": "auto"},
        {"additional_config": {}},
    ],
)
def test_arguments_that_would_break_slots_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(given))) as caught:
        arguments(Path("skeleton"), PLAN, given)
    refusal(caught)
    assert caught.value.reason == "ENGINE_ARGUMENT"
