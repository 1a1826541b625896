"""What is decided about an engine on vLLM before vLLM is asked: versions, models, arguments, the plan of the slots."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.sources import MemorySource
from support.tiny import prune, tiny_checkpoint

from premoe_runtime.engines.vllm import compat
from premoe_runtime.engines.vllm.arguments import arguments
from premoe_runtime.engines.vllm.compat import NEEDED, SECOND_RUNNER, Needed
from premoe_runtime.engines.vllm.coverage import FAMILIES as COVERED
from premoe_runtime.engines.vllm.coverage import check_covered, router_fault, stock_router_fault
from premoe_runtime.engines.vllm.plan import SlotPlan, plan_in
from premoe_runtime.families.registry import FAMILIES as KNOWN
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.manifest import Manifest, RouterSpec

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
    gone = {"_prepare_inputs", "convert_to_unquantized_kernel_format"}

    def find(needed: Needed) -> object:
        if needed.path.split(".")[-1] in gone:
            raise AttributeError(needed.path)
        return needed

    with pytest.raises(InvalidInput) as caught:
        compat.check("0.32.0", find=find)
    text = refusal(caught)
    assert "gpu_model_runner.GPUModelRunner._prepare_inputs (rows of tokens)" in text
    assert "oracle.unquantized.convert_to_unquantized_kernel_format (swaps)" in text
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
    found = manifest(tmp_path, family)
    check_covered(found)
    plan = SlotPlan.of(found, [3, 40], pack="file:///here", rows=5)
    # No layer has more slots than experts.
    blocks = tuple(layer.block for layer in found.layers)
    assert (plan.slots, plan.blocks, plan.rows, plan.pack) == ((3, 16), blocks, 5, "file:///here")


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("deepseek_v2", "scales"),
        ("deepseek_v3", "held against stock vLLM"),
        ("gpt_oss", "held against stock vLLM"),
        ("phimoe", "sparsemixer"),
        ("ernie4_5_moe", "correction bias"),
        ("flex_olmo", "no model of its own"),
        ("hunyuan_v1_moe", "no model of its own"),
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
    ("change", "fault"),
    [
        ({"score": "sigmoid"}, "sigmoid"),
        ({"score": "sparsemixer"}, "sparsemixer"),
        ({"bias": True}, "bias"),
        ({"groups": 4, "chosen_groups": 2}, "groups"),
        ({"scale": 2.5}, "scales"),
    ],
)
def test_router_arithmetic_that_is_not_there_is_named(change: dict[str, Any], fault: str) -> None:
    plain = RouterSpec(score="softmax", renormalise=True)
    assert router_fault(plain) is None
    assert fault in str(router_fault(plain.model_copy(update=change)))


def test_a_stock_router_that_computes_otherwise_is_found_out(tmp_path: Path) -> None:
    found = manifest(tmp_path)
    same = {"top_k": 4, "global_num_experts": 16, "renormalize": True, "scoring_func": "softmax"}
    assert stock_router_fault(SimpleNamespace(**same), found) is None
    others = {"top_k": 5, "renormalize": False, "scoring_func": "sigmoid", "use_grouped_topk": True}
    for name, value in {**others, "routed_scaling_factor": 2.0}.items():
        assert name in str(stock_router_fault(SimpleNamespace(**{**same, name: value}), found))
    biased = SimpleNamespace(**same, e_score_correction_bias=[0.0])
    assert "correction bias" in str(stock_router_fault(biased, found))


def test_a_stock_router_with_groups(tmp_path: Path) -> None:
    found = manifest(tmp_path, "glm4_moe", n_group=4, topk_group=2)
    same = {"top_k": 4, "scoring_func": "sigmoid", "use_grouped_topk": True, "num_expert_group": 4, "topk_group": 2}
    biased = {**same, "e_score_correction_bias": [0.0]}
    assert stock_router_fault(SimpleNamespace(**biased), found) is None
    assert "bias" in str(stock_router_fault(SimpleNamespace(**same), found))
    for name, value in {"scoring_func": "softmax", "num_expert_group": 1, "topk_group": 3}.items():
        assert name in str(stock_router_fault(SimpleNamespace(**{**biased, name: value}), found))


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


@pytest.mark.parametrize(
    "given",
    [
        {"quantization": "fp8"},
        {"enable_eplb": True},
        {"enable_expert_parallel": True},
        {"tensor_parallel_size": 2},
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
